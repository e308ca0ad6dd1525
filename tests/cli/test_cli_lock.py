import json

from mergeengine.output.lock import PlanLock
from mergeengine.workflow import prepare


def test_written_and_shown(here, command):
    ended = command("lock", "plan.yaml")
    assert ended.code == 0
    assert ended.err == f"wrote {here / 'plan.lock'}\n".replace(str(here) + "/", "")
    locked = json.loads((here / "plan.lock").read_text())["models"]
    assert [line.split() for line in ended.out.splitlines()] == [
        [reference, locked[reference]] for reference in ("./base", "./ft", "./target")
    ]
    assert command("lock", "plan.yaml").err == ""


def test_json(here, command):
    document = command("lock", "plan.yaml", "--format", "json").json
    assert set(document) == {"lock", "written", "models"}
    assert document["written"] is True
    assert set(document["models"]) == {"./base", "./ft", "./target"}


def test_check(here, command):
    missing = command("lock", "plan.yaml", "--check")
    assert (missing.code, (here / "plan.lock").exists()) == (7, False)
    command("lock", "plan.yaml")
    assert command("lock", "plan.yaml", "--check").code == 0
    (here / "ft/config.json").write_text((here / "ft/config.json").read_text() + "\n")
    before = (here / "plan.lock").read_bytes()
    changed = command("lock", "plan.yaml", "--check")
    assert changed.code == 7
    assert "./ft: xxh3:" in changed.err
    assert "./base" not in changed.err
    assert (here / "plan.lock").read_bytes() == before


def test_hub_models_keep_their_commit_until_the_update(here, command, monkeypatch):
    seen = []

    def watched(plan, lock, **options):
        seen.append(lock)
        return opened(plan, lock, **options)

    opened = prepare.open_models
    monkeypatch.setattr(prepare, "open_models", watched)
    command("lock", "plan.yaml")
    command("lock", "plan.yaml")
    command("lock", "plan.yaml", "--update")
    assert [bool(lock.models) for lock in seen] == [False, True, False]
    assert PlanLock({"org/name": "org/name@abc"}).commit_of("org/name") == "abc"


def test_check_and_update_exclude_each_other(here, command):
    assert command("lock", "plan.yaml", "--check", "--update").code == 2
