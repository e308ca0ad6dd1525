"""Stopping a run in its middle, and going on."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

COMMAND = (sys.executable, "-m", "mergeengine", "run", "plan.yaml", "--workers", "1")
SOURCES = 40  # of one pair of models: much arithmetic for few bytes on the disk
PLAN = """\
version: 1
name: long
target: ./target
sources:
"""


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan that takes about a second, and its undisturbed output."""
    folder = tmp_path_factory.mktemp("long")
    for seed, name in enumerate(("target", "base", "ft")):
        torch.manual_seed(seed)
        (folder / name).mkdir()
        tensors = {f"layers.{n}.w": torch.randn(1 << 20) for n in range(12)}
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
    source = "  - {source_base: ./base, source_ft: ./ft, scaling: 0.1}\n"
    (folder / "plan.yaml").write_text(PLAN + SOURCES * source)
    process = start(folder, "undisturbed")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return folder


def start(folder: Path, output: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, "--output", output],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are otherwise there")
def test_stopped_twice_in_its_middle_and_gone_on(long):
    partial = long / ".stopped.partial"
    for number in (signal.SIGINT, signal.SIGTERM):
        process = start(long, "stopped")
        wait_for_new_lines(partial / "journal", process)
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, ""), err
        assert err.splitlines()[-1] == "stopped; run the same command again to go on from here"
        assert not (long / "stopped").exists()

    process = start(long, "stopped")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "were done before" in err
    assert digest(long / "stopped") == digest(long / "undisturbed")
    assert not partial.exists()


def wait_for_new_lines(journal: Path, process: "subprocess.Popen[str]") -> None:
    """Until the run has finished a few blocks of its own."""

    def lines() -> int:
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    before = lines()
    while lines() < before + 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
