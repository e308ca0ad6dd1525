"""Under a memory limit of the kernel that counts page cache too, as a container's does.

A limit here counts what a process takes after it came, so not the imports: the promise's terms.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from children import Child, compiled, default_budget, projection, run_with, take
from control_groups import limited
from lineage import many, sparse_lineage

from tests.compiled_loop import needs_loop

MiB = 1 << 20
PROMISED = 256 * MiB
ANSWERED = 0
KILLED = -9

LOOPS = [
    pytest.param(True, marks=needs_loop, id="compiled"),
    pytest.param(False, id="torch"),
]
LARGE = many(2, 60, 1000, 1000)  # 240 MB a model: no file fits into PROMISED beside another


def test_what_takes_more_than_the_limit_is_killed() -> None:
    """The tests below can fail: the limit is there."""
    with limited(64 * MiB) as group:
        for size, ending in ((32 * MiB, ANSWERED), (80 * MiB, KILLED)):
            child = Child(take, size)
            group.take(child.pid)
            assert child.go().answer() == (size if ending == ANSWERED else None)
            assert child.process.exitcode == ending


def test_a_run_that_needs_more_than_the_limit(folder: Path) -> None:
    """It is refused, or, where the user says that there is more, killed."""
    plan = sparse_lineage(folder, LARGE)
    for options in ({}, {"memory": 96 * MiB}):
        with limited(12 * MiB) as group:  # two inputs and the output of one worker are 6 MiB
            child = Child(run_with, plan, options, (compiled, False))
            group.take(child.pid)
            answer = child.go().answer()
        if options:
            assert (answer, child.process.exitcode) == (None, KILLED)
        else:
            assert answer[0] == "ResourceError"


@pytest.mark.parametrize("loop", LOOPS)
def test_the_promised_memory_suffices(loop: bool, folder: Path) -> None:
    """Inputs and output are four times the limit, so that page cache fills what is left of it."""
    plan = sparse_lineage(folder, LARGE)
    with limited(PROMISED) as group:
        child = Child(run_with, plan, {}, (compiled, loop))
        group.take(child.pid)
        answer, peak = child.go().watch()
        assert answer is not None, "killed for lack of memory"
        assert group.most() > 0.9 * PROMISED
    assert answer[0] is True
    assert peak <= answer[1]["memory"]["projected_bytes"] <= PROMISED


@pytest.mark.parametrize("loop", LOOPS)
def test_the_projected_memory_suffices(loop: bool, folder: Path) -> None:
    options = {"memory": 96 * MiB}
    plan = sparse_lineage(folder, LARGE)
    with limited(projection(plan, options)) as group:
        child = Child(run_with, plan, options, (compiled, loop))
        group.take(child.pid)
        answer = child.go().answer()
    assert answer is not None, "killed for lack of memory"
    assert answer[0] is True


def test_a_whole_process_in_a_small_container(folder: Path) -> None:
    """Imports, libraries, inputs and output: all of it in 384 MiB, with the default budget."""
    plan = sparse_lineage(folder, LARGE)
    command = [sys.executable, "-m", "mergeengine", "run", str(plan), "--device", "cpu"]
    with limited(384 * MiB) as group:
        waiting = "import os, sys; sys.stdin.readline(); os.execv(sys.argv[1], sys.argv[1:])"
        process = subprocess.Popen(
            [sys.executable, "-c", waiting, *command],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        group.take(process.pid)
        _, errors = process.communicate("go\n", timeout=120)
        assert process.returncode == 0, errors
        assert group.most() > 0.9 * 384 * MiB
    assert (folder / "out" / "mergeengine.json").exists()


def test_the_default_budget_follows_the_limit() -> None:
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if ram < 1024 * MiB:
        pytest.skip("the machine has less than 1 GiB")
    with limited(512 * MiB) as group:
        child = Child(default_budget)
        group.take(child.pid)
        assert child.go().answer() == 256 * MiB
