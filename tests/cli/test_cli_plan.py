import re

PLAN_TEXT = """\
plan         tiny (plan.yaml)
target       ./target
source_base  ./base
source_ft    ./ft
output       HERE/out
             would be made: there is no output yet
tensors      9: 6 merged, 2 frozen, 1 not float
read         784 B
write        320 B in 1 file
download     nothing
free disk    SIZE
memory       SIZE projected, 1 GiB allowed
workers      2
"""


def settled(text: str, here: object) -> str:
    """Without what depends on the machine."""
    text = text.replace(str(here), "HERE")
    return re.sub(r"(free disk +|memory +)[0-9.]+ \w+", r"\1SIZE", text)


def test_text(here, command):
    ended = command("plan", "plan.yaml", "--memory", "1GiB", "--workers", "2")
    assert ended.code == 0
    assert settled(ended.out, here) == PLAN_TEXT
    assert "note: " in ended.err
    assert not (here / "out").exists()
    assert not (here / "plan.lock").exists()


def test_json_keys(here, command):
    document = command("plan", "plan.yaml", "--format", "json").json
    assert set(document) == {
        "plan", "output", "decision", "state", "reason", "unfinished", "shortages", "identity",
        "models", "tensors", "shards", "bytes", "memory", "workers", "block_chunks", "notes",
        "warnings",
    }  # fmt: skip
    assert set(document["bytes"]) == {"read", "write", "download", "remote", "free_disk"}
    assert [model["role"] for model in document["models"]] == ["target", "source_base", "source_ft"]
    assert document["bytes"]["write"] == 320


def decision(command, *options):
    document = command("plan", "plan.yaml", "--format", "json", *options).json
    return document["decision"], document["state"]


def test_every_state_of_the_output(here, command):
    assert decision(command) == ("make", "absent")
    command("run", "plan.yaml")
    assert decision(command) == ("nothing", "up to date")
    assert decision(command, "--set", "scaling=0.1") == ("replace", "earlier version")
    (here / "out/notes.txt").write_text("mine")
    assert decision(command) == ("refuse", "modified")
    assert decision(command, "--force") == ("replace", "modified")
    (here / "out/mergeengine.json").unlink()
    assert decision(command) == ("refuse", "foreign")
    assert "would be refused" in command("plan", "plan.yaml").out


def test_what_does_not_fit_is_told_and_is_no_error(here, command):
    ended = command("plan", "plan.yaml", "--memory", "1KiB", "--device", "cuda:99")
    assert ended.code == 0
    assert "does not fit  this plan needs at least" in ended.out
    assert "does not fit  no device 'cuda:99'" in ended.out
    assert command("run", "plan.yaml", "--memory", "1KiB").code == 4
    assert command("run", "plan.yaml", "--device", "cuda:99").code == 4


def test_too_little_disk_is_told(here, command, monkeypatch):
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 990, 10))
    ended = command("plan", "plan.yaml")
    assert ended.code == 0
    assert re.search("does not fit  .* are needed here .* and 10 B are free", ended.out)
    assert command("run", "plan.yaml").code == 4


def test_a_plan_without_an_output_says_so(here, command):
    text = (here / "plan.yaml").read_text().replace("output:\n  path: out\n", "")
    (here / "plan.yaml").write_text(text)
    ended = command("plan", "plan.yaml")
    assert ended.code == 2
    assert "use --output" in ended.err
    assert command("plan", "plan.yaml", "--output", "elsewhere").code == 0
