"""``init`` and ``schema``."""

import json

import pytest

from mergeengine.plan.json_schema import FILE, plan_schema
from mergeengine.plan.templates import TEMPLATES


@pytest.mark.parametrize("kind", list(TEMPLATES))
def test_what_is_written_is_a_plan(here, command, kind):
    ended = command("init", kind, "--output", "new.yaml")
    assert (ended.code, ended.out) == (0, "")
    assert "wrote new.yaml" in ended.err
    assert command("validate", "new.yaml").code == 0
    assert json.loads((here / FILE).read_text()) == plan_schema()
    assert (here / "new.yaml").read_text().startswith(f"# yaml-language-server: $schema={FILE}\n")


def test_nothing_is_replaced_without_force(here, command):
    before = (here / "plan.yaml").read_text()
    ended = command("init")
    assert ended.code == 5
    assert ended.err.startswith("error: plan.yaml: there is such a file; --force replaces it")
    assert (here / "plan.yaml").read_text() == before
    assert not (here / FILE).exists()
    assert command("init", "multi", "--force").code == 0
    assert "name: several" in (here / "plan.yaml").read_text()


def test_to_stdout(here, command):
    ended = command("init", "backport", "--output", "-")
    assert "name: backported" in ended.out
    assert not (here / FILE).exists()


def test_an_unknown_kind(here, command):
    ended = command("init", "recycel")
    assert ended.code == 2
    assert "did you mean `recycle`?" in ended.err


def test_a_folder_that_is_not_there(here, command):
    ended = command("init", "--output", "no/plan.yaml")
    assert (ended.code, ended.err) == (
        5, "error: no/plan.yaml: cannot be written: No such file or directory\n",
    )  # fmt: skip


def test_help_names_every_kind(command):
    out = " ".join(command("init", "--help").out.split())
    for kind in TEMPLATES:
        assert kind in out


def test_schema(here, command):
    ended = command("schema")
    assert (ended.code, ended.err) == (0, "")
    assert ended.json == plan_schema()
