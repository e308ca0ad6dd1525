"""Programs of a chain: allowed, without a shell, in a clean environment, whole or not at all."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chain_files import ITERATIVE, calls, digests, make_model, tune, write_chain
from safetensors.torch import load_file

from mergeengine.workflow.chain.commands import PASSED

PYTHON = [sys.executable, "-I", "-S"]


def program(text: str, **keys: object) -> dict[str, object]:
    """A chain of one step that runs a program given as Python's text."""
    run = {"command": [*PYTHON, "-c", text, "{output}"], **keys}
    return {"version": 1, "models": {"m1": "./m1"}, "steps": [{"id": "made", "run": run}]}


def test_programs_are_not_run_unasked(here, command):
    write_chain(here, ITERATIVE)
    ended = command("run", "chain.yaml")
    assert ended.code == 2
    assert f"m1_ft: {sys.executable} -I -S tune.py {{m1}} {{output}} 1" in ended.err
    assert "--allow-commands allows them" in ended.err
    assert (calls(here), (here / "out").exists()) == ([], False)
    assert command("run", "chain.yaml", "--allow-commands").code == 0
    assert command("run", "chain.yaml").code == 0  # nothing to run


def test_a_program_that_fails(here, run):
    text = "import sys; print('so far', flush=True); print('no luck', file=sys.stderr); sys.exit(3)"
    write_chain(here, program(text))
    ended = run()
    assert ended.code == 8
    assert ended.outcomes == {"made": "failed"}
    log = here / "out" / "logs" / "made.log"
    assert "step `made` failed with exit code 3 after " in ended.err
    assert f"{log}, the last of it:\n    so far\n    no luck" in ended.err
    assert "made | so far" in ended.err
    assert sorted(log.read_text().split("\n")) == ["", "no luck", "so far"]
    assert [path.name for path in (here / "out").iterdir()] == ["logs"]


def test_a_program_that_is_killed(here, run):
    write_chain(here, program("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    ended = run()
    assert (ended.code, "failed with signal 9" in ended.err) == (8, True)


def test_a_program_that_is_not_there(here, run):
    chain = program("")
    chain["steps"][0]["run"]["command"] = ["no-such-program", "{output}"]
    write_chain(here, chain)
    ended = run()
    assert ended.code == 8
    assert "step `made`: no-such-program cannot be run: No such file" in ended.err


HALF = """\
import os, shutil, sys
shutil.copytree("m1", sys.argv[1])
path = os.path.join(sys.argv[1], "model.safetensors")
os.truncate(path, os.path.getsize(path) // 2)
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (HALF, "model.safetensors"),
        (HALF + "sys.exit(1)", "exit code 1"),
        (HALF + "os.kill(os.getpid(), 9)", "signal 9"),
        ("print('done')", "made no folder {output}"),
        ("import os, sys; os.mkdir(sys.argv[1])", "safetensors"),
    ],
)
def test_half_an_output_is_none(here, run, text, told):
    write_chain(here, program(text))
    ended = run()
    assert (ended.code, ended.outcomes) == (8, {"made": "failed"})
    assert told in ended.err
    assert not (here / "out" / "made").exists()
    write_chain(here, program(HALF.replace("// 2", "// 1")))
    assert run().made == ["made"]
    assert digests(here / "out" / "made").items() >= digests(here / "m1").items()
    assert not (here / "out" / ".made.partial").exists()


def test_a_failure_stops_what_needs_it(here, run, command):
    make_model(here / "m4", 4)
    chain = program("import sys; sys.exit(5)")
    chain["models"]["m4"] = "./m4"
    chain["steps"] += [
        {"id": "needs_it", "plan": {"target": "m4", "source_base": "m1", "source_ft": "made"}},
        {"id": "other", "run": tune("m4")},
        {"id": "more", "plan": {"target": "m1", "source_base": "m4", "source_ft": "other"}},
    ]
    write_chain(here, chain)
    ended = run()
    assert (ended.code, ended.outcomes) == (8, {"made": "failed"})
    ended = run("--keep-going")
    assert ended.code == 8
    assert ended.outcomes == {
        "made": "failed", "needs_it": "skipped", "other": "made", "more": "made",
    }  # fmt: skip
    calls(here)
    chain["steps"][0]["run"] = tune("m1")
    write_chain(here, chain)
    assert run().made == ["made", "needs_it"]
    assert calls(here) == ["made"]


ENVIRONMENT = """\
import os, shutil, sys
shutil.copytree("m1", sys.argv[1])
open("environment.txt", "w").write("\\n".join("=".join(pair) for pair in os.environ.items()))
open("arguments.txt", "w").write("\\n".join(sys.argv[2:]))
"""


def environment(folder: Path) -> dict[str, str]:
    lines = (folder / "environment.txt").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def test_the_environment_is_clean(here, run, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    monkeypatch.setenv("SETTING", "outside")
    keys = {"env": {"SETTING": "inside", "MODEL": "{m1}"}}
    write_chain(here, program(ENVIRONMENT, **keys))
    assert run().made == ["made"]
    found = environment(here)
    assert "SECRET_TOKEN" not in found
    assert (found["SETTING"], found["MODEL"]) == ("inside", str(here / "m1"))
    assert found["MERGEENGINE_STEP"] == "made"
    assert found["MERGEENGINE_OUTPUT"] == str(here / "out" / ".made.partial" / "files")
    own = {"MERGEENGINE_STEP", "MERGEENGINE_OUTPUT", "MERGEENGINE_SCRATCH", "PYTHONUNBUFFERED"}
    assert found.keys() - {*PASSED, *own, "SETTING", "MODEL", "LC_CTYPE"} == set()
    # What is passed on is no part of what the step is, and is written nowhere.
    write_chain(here, program(ENVIRONMENT, **keys, pass_env=["SECRET_TOKEN"]))
    assert run().made == []
    assert run("--force").made == ["made"]
    assert environment(here)["SECRET_TOKEN"] == "abc"
    written = [path for path in here.rglob("*") if path.is_file() and path.name[:4] != "envi"]
    assert not any(b"abc" in path.read_bytes() for path in written)
    monkeypatch.delenv("SECRET_TOKEN")
    ended = run("--force")
    assert (ended.code, "the environment has no variable SECRET_TOKEN" in ended.err) == (8, True)


def test_arguments_are_passed_as_they_are(here, run):
    words = ["$$HOME; echo no", "*", "{{m1}}", '{"a": {"b": 1}}', "a b", 0.5, "{scratch}"]
    chain = program(ENVIRONMENT)
    chain["steps"][0]["run"]["command"] += words
    write_chain(here, chain)
    assert run().made == ["made"]
    given = (here / "arguments.txt").read_text().splitlines()
    scratch = str(here / "out" / ".made.partial" / "scratch")
    assert given == ["$HOME; echo no", "*", "{m1}", '{"a": {"b": 1}}', "a b", "0.5", scratch]


def test_scratch_is_there_at_the_next_attempt(here, run):
    text = (
        "import os, shutil, sys\nmark = os.environ['MERGEENGINE_SCRATCH'] + '/mark'\n"
        "if not os.path.exists(mark): open(mark, 'w'); sys.exit(1)\n"
        "shutil.copytree('m1', sys.argv[1])"
    )
    write_chain(here, program(text))
    assert run().code == 8
    assert run().made == ["made"]
    assert {path.name for path in (here / "out").iterdir()} == {"logs", "made"}


def test_clean_knows_chains(here, run, command):
    write_chain(here, program("import os, sys; os.mkdir(sys.argv[1]); sys.exit(1)"))
    run()
    assert (here / "out" / ".made.partial").exists()
    assert command("clean", "chain.yaml").code == 0
    assert not (here / "out" / ".made.partial").exists()


def start(*arguments: str) -> "subprocess.Popen[bytes]":
    source = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-m", "mergeengine", "run", "chain.yaml", "--allow-commands", *arguments],
        env={**os.environ, "PYTHONPATH": source},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(condition, process=None) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        assert process is None or process.poll() is None
        time.sleep(0.01)


SLOW = (
    "import os, shutil, sys, time\nopen('pid', 'w').write(str(os.getpid()))\n"
    "while not os.path.exists('go'): time.sleep(0.01)\nshutil.copytree('m1', sys.argv[1])"
)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def started(folder: Path) -> bool:
    return (folder / "pid").exists() and bool((folder / "pid").read_text())


def test_ctrl_c_stops_the_program_too(here, run):
    write_chain(here, program(SLOW))
    process = start()
    wait_for(lambda: started(here), process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"stopped; run the same command again" in said
    assert not is_running(int((here / "pid").read_text()))
    (here / "go").touch()
    assert run().made == ["made"]


def test_a_program_that_outlives_its_run_holds_the_output(here, run):
    write_chain(here, program(SLOW))
    process = start()
    wait_for(lambda: started(here), process)
    process.kill()
    process.communicate(timeout=60)
    pid = int((here / "pid").read_text())
    assert is_running(pid)
    ended = run()
    assert (ended.code, "another run is writing this output" in ended.err) == (6, True)
    (here / "go").touch()
    wait_for(lambda: not is_running(pid))
    assert not (here / "out" / "made").exists()  # nobody has looked at what it left
    assert run().made == ["made"]


def test_killed_anywhere_and_run_again(here, run):
    write_chain(here, ITERATIVE)
    run()
    expected = digests(here / "out") | {"lock": digests(here)["chain.lock"]}
    calls(here)
    done: list[str] = []
    shutil.rmtree(here / "out")
    (here / "chain.lock").unlink()
    for kill_after in ("m1_ft", "m3_start"):
        process = start()
        place = here / "out" / kill_after
        wait_for(lambda place=place, process=process: place.exists() or process.poll() is not None)
        process.kill()
        process.communicate(timeout=60)
        assert place.exists()
        done += calls(here)
    wait_for(lambda: run().code == 0)
    assert digests(here / "out") | {"lock": digests(here)["chain.lock"]} == expected
    # A program runs twice only where the kill came between its end and the naming of its output.
    assert sorted(set(done + calls(here))) == ["m1_ft", "m2_ft", "m3_ft"]
    assert len(done) <= 4


class Stopped(BaseException):
    """As if the machine had stopped: nobody catches it."""


@pytest.mark.parametrize("part", range(6))
def test_stopped_at_any_step_towards_the_disk(here, run, monkeypatch, part):
    document = {**ITERATIVE, "steps": [dict(step) for step in ITERATIVE["steps"][:3]]}
    document["steps"][1]["keep"] = False
    write_chain(here, document)
    real = {name: getattr(Path, name) for name in ("rename", "replace", "unlink", "write_bytes")}
    count, stop_at = 0, -1

    def counting(name):
        def step(*arguments, **keys):
            nonlocal count
            count += 1
            if count == stop_at:
                raise Stopped
            return real[name](*arguments, **keys)

        return step

    for name in real:
        monkeypatch.setattr(Path, name, counting(name))
    assert run().made == ["m1_ft", "m2_start", "m2_ft"]
    expected, steps = digests(here / "out"), count
    assert steps > 20
    for place in range(part + 1, steps + 1, 6 * 3):
        shutil.rmtree(here / "out")
        (here / "chain.lock").unlink()
        count, stop_at = 0, place
        with contextlib.suppress(Stopped):
            run()
        stop_at = -1
        there = {path.name for path in (here / "out").iterdir() if path.name[0] != "."}
        calls(here)
        assert run().code == 0
        assert digests(here / "out") == expected
        assert not {path.name for path in (here / "out").iterdir()} & {
            f".{n}.partial" for n in there
        }
        assert there.isdisjoint(calls(here))  # what was whole was not made again


def test_large_tensors_resume_inside_a_step(here, run, monkeypatch):
    """The journal of a merge goes on in a chain."""
    import torch
    from safetensors.torch import save_file

    for seed, name in enumerate(("m1", "m2", "m3")):
        generator = torch.Generator().manual_seed(seed)
        values = {f"layers.{n}.w": torch.randn(1 << 20, generator=generator) for n in range(6)}
        save_file(values, here / name / "model.safetensors")
    plan = {"target": "m3", "source_base": "m1", "source_ft": "m2"}
    write_chain(here, {**ITERATIVE, "steps": [{"id": "merged", "plan": plan}]})
    from mergeengine.output.writer import ShardWriter

    written = []
    real = ShardWriter.write

    def stopping(self, *arguments, **keys):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(1)
        return real(self, *arguments, **keys)

    monkeypatch.setenv("MERGEENGINE_NATIVE", "0")
    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", stopping)
        assert run("--workers", "1").code == 130
    ended = run("--workers", "1")
    assert ended.made == ["merged"]
    assert "were done before" in ended.err
    one, two, three = (load_file(here / name / "model.safetensors") for name in ("m1", "m2", "m3"))
    for name, tensor in load_file(here / "out" / "merged" / "model.safetensors").items():
        exact = three[name].double() + (two[name].double() - one[name].double())
        assert torch.equal(tensor, exact.float())
