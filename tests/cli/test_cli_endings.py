"""How commands end: exit codes, one clear text, help, and what they import."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

import mergeengine.cli
from mergeengine.cli.commands import COMMANDS
from mergeengine.errors import (
    CheckpointError,
    InputChangedError,
    Interrupted,
    MergeEngineError,
    OutputBusyError,
    OutputError,
    PlanError,
    ResourceError,
    VerificationError,
)
from mergeengine.execution import native
from mergeengine.execution.presence import only_the_cpu
from tests.compiled_loop import needs_loop


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MergeEngineError, 1),
        (PlanError, 2),
        (CheckpointError, 3),
        (InputChangedError, 3),
        (ResourceError, 4),
        (OutputError, 5),
        (OutputBusyError, 6),
        (VerificationError, 7),
    ],
)
def test_each_error_has_its_code_and_one_text(here, command, monkeypatch, error, code):
    def fail(*arguments: object, **options: object) -> None:
        raise error("one clear text")

    monkeypatch.setattr("mergeengine.workflow.run.run", fail)
    ended = command("run", "plan.yaml")
    assert (ended.code, ended.out, ended.err) == (code, "", "error: one clear text\n")


@pytest.mark.parametrize("error", [Interrupted("stopped; go on later"), KeyboardInterrupt()])
def test_interrupted(here, command, monkeypatch, error):
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("mergeengine.workflow.run.run", fail)
    ended = command("run", "plan.yaml")
    assert (ended.code, ended.out, ended.err.count("\n")) == (130, "", 1)
    assert ended.err.startswith("stopped; ")


def test_a_fault_of_the_machine_names_the_file(here, command, monkeypatch):
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(5, "Input/output error", "/mnt/weights")

    monkeypatch.setattr("mergeengine.workflow.run.run", fail)
    ended = command("run", "plan.yaml")
    assert (ended.code, ended.err) == (1, "error: /mnt/weights: Input/output error\n")


def test_an_internal_error_shows_its_traceback_only_when_asked(here, command, monkeypatch):
    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("by the engine")

    monkeypatch.setattr("mergeengine.workflow.run.run", fail)
    ended = command("run", "plan.yaml", "--log-file", "log.txt")
    assert ended.code == 1
    assert "error: internal error: ZeroDivisionError: by the engine\n" in ended.err
    assert "Please report it" in ended.err
    assert "Traceback" not in ended.err
    assert "Traceback" in (here / "log.txt").read_text()
    assert "Traceback" in command("--debug", "run", "plan.yaml").err


def test_the_librarys_warnings_are_worded_like_the_commands(here, command, monkeypatch):
    def warn(*arguments: object, **options: object) -> None:
        logging.getLogger("mergeengine.checkpoints.hub").warning("%s fails", "the hub")
        raise CheckpointError("after a warning")

    monkeypatch.setattr("mergeengine.workflow.run.run", warn)
    assert command("run", "plan.yaml").err == ("warning: the hub fails\nerror: after a warning\n")


def test_the_models_do_not_fit(here, command):
    (here / "ft/model.safetensors").unlink()
    assert command("plan", "plan.yaml").code == 3


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["rnu"], "there is no command `rnu`; did you mean `run`?"),
        (["run"], "Missing argument 'PLAN'"),
        (["run", "plan.yaml", "--forc"], "--force"),
        (["run", "plan.yaml", "--memory", "4Gx"], "not a size: '4Gx'"),
        (["run", "plan.yaml", "--workers", "0"], "--workers"),
        (["run", "plan.yaml", "--format", "xml"], "--format"),
        (["validate"], "Missing argument 'PLAN...'"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_wrong_command_line(here, command, arguments, text):
    ended = command(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert text in ended.err
    assert "--help` says more" in ended.err


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(command, name):
    ended = command(name, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"Usage: mergeengine {name}")
    assert name in command().out


def test_help_tells_the_exit_codes_as_the_module_does(command):
    out = command("--help").out
    table = [line.strip() for line in (mergeengine.cli.__doc__ or "").splitlines()]
    codes = [line for line in table if line[:1].isdigit()]
    assert [line.split()[0] for line in codes] == [*map(str, range(10)), "130"]
    assert all(line in out for line in codes)
    assert command().out == out


def test_version(command):
    from importlib.metadata import version

    assert command("--version").out == f"mergeengine {version('mergeengine')}\n"


def imported(*arguments: str) -> set[str]:
    code = (
        "import sys, json; from mergeengine.cli import call; "
        f"code = call({list(arguments)!r}); "
        "print(json.dumps([code, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    code, modules = json.loads(python("-c", code).stdout.splitlines()[-1])
    assert code == 0
    return set(modules)


def test_help_imports_next_to_nothing():
    heavy = {"torch", "transformers", "safetensors", "huggingface_hub", "pydantic", "yaml", "tqdm"}
    assert not imported("--help") & heavy


def test_validate_imports_no_torch(here):
    heavy = {"torch", "transformers", "safetensors", "huggingface_hub", "numpy", "tqdm"}
    assert not imported("validate", "plan.yaml") & heavy


@needs_loop
@pytest.mark.skipif(not only_the_cpu("auto"), reason="torch is asked about the accelerator")
def test_an_ordinary_merge_imports_no_torch(here):
    assert not imported("run", "plan.yaml") & {"torch", "numpy", "transformers", "fsspec"}
    assert (here / "out/mergeengine.json").is_file()


def test_without_the_compiled_loop_torch_computes(here, monkeypatch):
    monkeypatch.setenv(native.SWITCH, "0")
    assert "torch" in imported("run", "plan.yaml")


@pytest.mark.parametrize("name", ["plan", "explain", "lock"])
def test_what_reads_only_headers_imports_no_torch(here, name):
    assert not imported(name, "plan.yaml") & {"torch", "transformers", "tqdm"}


@pytest.mark.skipif(sys.platform == "win32", reason="pipes end otherwise there")
@pytest.mark.parametrize("arguments", [["explain", "plan.yaml"], ["--help"]])
def test_nobody_reads_stdout(here: Path, arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "mergeengine", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), err) == (1, b"")
