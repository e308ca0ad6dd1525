import json
import os
import re
from pathlib import Path

import pytest

from mergeengine.output.workspace import Workspace, workspace_path


def test_run_prints_the_path_and_nothing_else_on_stdout(here, command):
    ended = command("run", "plan.yaml")
    assert (ended.code, ended.out) == (0, f"{here / 'out'}\n")
    assert "done in" in ended.err
    assert (here / "out/model.safetensors").is_file()
    assert (here / "plan.lock").is_file()


def test_a_second_run_does_nothing(here, command):
    command("run", "plan.yaml")
    made = (here / "out/model.safetensors").stat()
    ended = command("run", "plan.yaml")
    assert (ended.code, ended.out) == (0, f"{here / 'out'}\n")
    assert "up to date" in ended.err
    assert os.path.samestat(made, (here / "out/model.safetensors").stat())


def test_elsewhere_than_on_a_terminal_progress_is_one_line_a_phase(here, command):
    err = command("run", "plan.yaml").err
    assert "\r" not in err
    phases = [line for line in err.splitlines() if re.match("merging|sealing", line)]
    assert [line.split()[0] for line in phases] == ["merging", "sealing"]


def test_json_and_report_say_the_same(here, command):
    ended = command("run", "plan.yaml", "--format", "json", "--report", "report.json")
    assert ended.code == 0
    assert json.loads((here / "report.json").read_text()) == ended.json
    assert set(ended.json) == {
        "plan", "output", "made", "identity", "seconds", "bytes", "gigabytes_per_second",
        "memory", "device", "loop", "workers", "block_chunks", "tensors", "vocabulary", "notes",
        "warnings", "precision",
    }  # fmt: skip
    assert ended.json["made"] is True
    assert ended.json["tensors"] == {"merged": 6, "frozen": 2, "not float": 1}
    assert not list(here.glob("*.new"))


def test_notes_are_told_before_the_merge(here, command):
    err = command("run", "plan.yaml").err
    assert 0 <= err.index("note: ") < err.index("merging")


def test_set_output_and_workers_reach_the_run(here, command):
    ended = command(
        "run", "plan.yaml", "--set", "scaling=0", "--output", "other", "--workers", "1",
        "--memory", "512MiB", "--format", "json",
    )  # fmt: skip
    assert ended.code == 0
    assert ended.json["output"] == str(here / "other")
    assert ended.json["tensors"] == {"frozen": 8, "not float": 1}
    assert ended.json["workers"] == 1
    assert not (here / "out").exists()
    assert not (here / "plan.lock").exists()


def test_dry_run_is_the_plan_command(here, command):
    options = ("plan.yaml", "--memory", "1GiB", "--workers", "2", "--set", "scaling=0.25")
    dry, plan = command("run", *options, "--dry-run"), command("plan", *options)
    assert dry.code == plan.code == 0
    without_disk = [re.sub("free disk.*", "", ended.out) for ended in (dry, plan)]
    assert without_disk[0] == without_disk[1] != ""
    assert not (here / "out").exists()


def test_the_log_file_has_times_messages_and_tracebacks(here, command):
    assert command("run", "plan.yaml", "--log-file", "log.txt").code == 0
    command("run", "plan.yaml", "--memory", "1KiB", "--set", "scaling=1", "--log-file", "log.txt")
    lines = (here / "log.txt").read_text().splitlines()
    assert any(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ INFO done in", line) for line in lines)
    assert any("ERROR this plan needs at least" in line for line in lines)
    assert "Traceback (most recent call last):" in lines


@pytest.mark.parametrize("option", ["--report", "--log-file"])
@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("out/file", "inside the output"),
        ("plan.yaml", "this is the plan"),
        ("target", "this is a folder"),
        ("nowhere/file", "there is no folder"),
    ],
)
def test_reports_and_logs_stand_outside(here, command, option, path, problem):
    ended = command("run", "plan.yaml", option, path)
    assert (ended.code, ended.out) == (2, "")
    assert f"error: {option} {path}: " in ended.err
    assert problem in ended.err
    assert not (here / "out").exists()


def test_a_report_does_not_go_with_a_dry_run(here, command):
    assert command("run", "plan.yaml", "--dry-run", "--report", "r.json").code == 2


def test_force_replaces_what_is_not_the_plans(here, command):
    (here / "out").mkdir()
    (here / "out/thesis.txt").write_text("years")
    refused = command("run", "plan.yaml")
    assert refused.code == 5
    assert (here / "out/thesis.txt").read_text() == "years"
    assert command("run", "plan.yaml", "--force").code == 0
    assert not (here / "out/thesis.txt").exists()


@pytest.mark.parametrize("output", ["target", ".", "ft/model.safetensors"])
def test_not_even_force_writes_over_the_inputs(here, command, output):
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    ended = command("run", "plan.yaml", "--output", output, "--force")
    assert ended.code == 5
    assert "lies there" in ended.err
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_busy(here, command):
    with Workspace(here / "out"):
        ended = command("run", "plan.yaml")
    assert ended.code == 6
    assert "another run is writing this output" in ended.err


def test_locked(here, command):
    missing = command("run", "plan.yaml", "--locked")
    assert (missing.code, "there is no lock" in missing.err) == (7, True)
    assert command("lock", "plan.yaml").code == 0
    assert command("run", "plan.yaml", "--locked").code == 0


def test_an_unfinished_run_is_told_by_plan(here, command, monkeypatch):
    from mergeengine.output.writer import ShardWriter

    def full(self: ShardWriter) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(ShardWriter, "sync", full)
        assert command("run", "plan.yaml").code != 0
    assert workspace_path(here / "out").is_dir()
    assert "a stopped run left 100% of it" in command("plan", "plan.yaml").out
    resumed = command("run", "plan.yaml", "--format", "json")
    assert resumed.json["bytes"]["kept_from_earlier_run"] > 0


def test_a_report_that_cannot_be_written_is_an_error(here, command, monkeypatch):
    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    command("run", "plan.yaml")
    monkeypatch.setattr(Path, "replace", refuse)
    ended = command("run", "plan.yaml", "--report", "report.json")
    assert ended.code == 5
    assert "error: report.json: the report cannot be written: Permission denied" in ended.err


def test_a_sweep_prints_the_path_of_each_output(here, command):
    ended = command("run", "plan.yaml", "--sweep", "scaling=0.3,0.5", "--report", "report.json")
    paths = [str(here / f"out-scaling-{value}") for value in ("0.3", "0.5")]
    assert (ended.code, ended.out.splitlines()) == (0, paths)
    assert "2 outputs made" in ended.err
    report = json.loads((here / "report.json").read_text())
    assert [output["output"] for output in report["outputs"]] == paths
    assert "1 output made, 2 up to date" in command(
        "run", "plan.yaml", "--sweep", "scaling=0.3,0.5,0.9"
    ).err  # fmt: skip
    assert "up to date" in command("run", "plan.yaml", "--sweep", "scaling=0.3,0.5").err


def test_a_sweep_as_json(here, command):
    ended = command("run", "plan.yaml", "--sweep", "scaling=0.3,0.5", "--format", "json")
    assert [output["made"] for output in ended.json["outputs"]] == [True, True]


def test_a_sweep_foreseen(here, command):
    command("run", "plan.yaml", "--sweep", "scaling=0.5")
    said = command("plan", "plan.yaml", "--sweep", "scaling=0.5,0.9").out
    assert said == command("run", "plan.yaml", "--sweep", "scaling=0.5,0.9", "--dry-run").out
    assert re.search(r"out-scaling-0\.5\n +up to date", said)
    assert re.search(r"out-scaling-0\.9\n +would be made", said)
    found = command("plan", "plan.yaml", "--sweep", "scaling=0.5,0.9", "--format", "json").json
    assert [output["decision"] for output in found["outputs"]] == ["nothing", "make"]
    assert found["bytes"]["write"] == found["outputs"][1]["bytes"]["write"]


def test_a_wrong_sweep(here, command):
    ended = command("run", "plan.yaml", "--sweep", "scaling=0.5,high")
    assert ended.code == 2
    assert "scaling=high" in ended.err
    ended = command("run", "plan.yaml", "--sweep", "scaling")
    assert (ended.code, "key=value,value" in ended.err) == (2, True)
    assert not list(here.glob("out*"))


def test_a_report_inside_an_output_of_a_sweep(here, command):
    ended = command(
        "run", "plan.yaml", "--sweep", "scaling=0.3,0.5", "--report", "out-scaling-0.5/r.json"
    )
    assert ended.code != 0
    assert "inside the output" in ended.err
