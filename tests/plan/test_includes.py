"""``include``: what overrides what, where paths start, and what is recorded."""

from pathlib import Path

import pytest

from mergeengine.errors import PlanError
from mergeengine.plan import Plan, load_plan
from mergeengine.values.anatomy import lone


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shared/deep").mkdir(parents=True)
    return tmp_path


def read(text: str, *overrides: str, **files: str) -> Plan:
    for name, content in files.items():
        Path(f"shared/{name}.yaml").write_text(content)
    Path("plan.yaml").write_text(text)
    return load_plan("plan.yaml", overrides)


A = "base: org/old\nsource_ft: org/a\nmasks: [{layers: 1, scale: 0}]\noutput: {dtype: float32}\n"
B = "source_ft: org/b\noutput: {shard_size: 1GB}\n"


def test_later_files_and_the_plan_itself_override(folder: Path) -> None:
    plan = read(
        "version: 1\ninclude: [shared/a.yaml, shared/b.yaml]\noutput: {shard_size: 2GB}\n"
        "masks: [{layers: 2, scale: 0}]\n",
        a=A,
        b=B,
    )
    assert plan.document == {
        "version": 1,
        "base": "org/old",
        "source_ft": "org/b",
        "masks": [{"layers": 2, "scale": 0}],
        "output": {"dtype": "float32", "shard_size": "2GB"},
    }
    assert set(plan.substituted.includes) == {"shared/a.yaml", "shared/b.yaml"}


def test_equal_plans_are_equal_whatever_files_they_come_from(folder: Path) -> None:
    plan = read("version: 1\nname: n\ninclude: shared/a.yaml\n", a=A)
    whole = read(f"version: 1\nname: n\n{A}")
    assert plan.identity_document == whole.identity_document


def test_positions_name_the_file(folder: Path) -> None:
    plan = read("version: 1\ninclude: shared/a.yaml\nscaling: 0.5\n", a=A)
    assert str(plan.masks.entries[0].position) == "shared/a.yaml:3:9"
    assert str(plan.sources[0].scaling.at(lone("x")).position) == "plan.yaml:3:10"
    assert str(plan.target.position) == "shared/a.yaml:1:7"


def test_paths_start_at_the_file_that_writes_them(folder: Path) -> None:
    (folder / "shared/deep/models.yaml").write_text(
        "vars: {store: ../../store}\nbase: ./old\nsource_ft: ${store}/ft\noutput: {path: out}\n"
    )
    plan = read("version: 1\ninclude: shared/a.yaml\n", a="include: deep/models.yaml\n")
    here = folder.resolve()
    assert plan.target.path == here / "shared/deep/old"
    assert plan.sources[0].source_ft.path == here / "store/ft"
    assert plan.output.path == here / "shared/deep/out"
    assert plan.document["base"] == "./shared/deep/old"
    assert plan.document["source_ft"] == "../store/ft" or plan.document["source_ft"] == "./store/ft"


def test_variables_cross_files(folder: Path) -> None:
    shared = "vars: {family: llama, unused: 1}\nbase: org/${family}\nsource_ft: org/${family}-ft\n"
    plan = read("version: 1\ninclude: shared/a.yaml\nvars: {family: olmo}\n", a=shared)
    assert plan.target.repo == "org/olmo"
    assert plan.warnings == (), "a shared file may declare more than one plan needs"
    assert read("version: 1\ninclude: shared/a.yaml\n", "family=x", a=shared).target.repo == "org/x"


def test_one_file_may_come_in_twice(folder: Path) -> None:
    plan = read("version: 1\ninclude: [shared/b.yaml, shared/c.yaml]\n", a=A,
                b="include: a.yaml\n", c="include: a.yaml\nscaling: 2\n")  # fmt: skip
    assert plan.sources[0].scaling.at(lone("x")).value == 2


def test_digests_are_of_what_a_file_says(folder: Path) -> None:
    def digest(text: str) -> str:
        return read("version: 1\ninclude: shared/a.yaml\n", a=text).substituted.includes[
            "shared/a.yaml"
        ]

    assert digest(A) == digest(f"# a comment\n{A}")
    assert digest(A) != digest(f"{A}scaling: 0.5\n")


def test_only_the_folder_or_the_repository(folder: Path) -> None:
    (folder / "outside.yaml").write_text(A)
    plan = folder / "shared/plan.yaml"
    plan.write_text("version: 1\ninclude: ../outside.yaml\n")
    with pytest.raises(PlanError, match="it lies outside of the plan's folder"):
        load_plan(plan)
    (folder / "shared/link.yaml").symlink_to(folder / "outside.yaml")
    plan.write_text("version: 1\ninclude: link.yaml\n")
    with pytest.raises(PlanError, match="it lies outside of the plan's folder"):
        load_plan(plan)
    (folder / ".git").mkdir()
    assert load_plan(plan).target.repo == "org/old"


def test_too_many(folder: Path) -> None:
    many = ", ".join(["shared/a.yaml"] * 40)
    with pytest.raises(PlanError, match="more than 32 files are included"):
        read(f"version: 1\ninclude: [{many}]\n", a=A)
