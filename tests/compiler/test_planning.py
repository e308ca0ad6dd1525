"""Planning takes work in proportion to the number of tensors, counted and not timed."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from benchmarks.planning import make_experts, make_plan
from mergeengine.plan.load import load_plan
from mergeengine.workflow.prepare import prepare

KEEP = "on_missing: keep_target\n"


def work(folder: Path, of_target: int, of_sources: int) -> int:
    """The steps of preparing a plan for models of so many tensors."""
    folder.mkdir()

    def make(model: Path) -> None:
        make_experts(model, of_target if model.name == "target" else of_sources)

    path = make_plan(folder, make)
    path.write_text(path.read_text() + KEEP)
    return steps(lambda: prepare(load_plan(path)))


def steps(function: Callable[[], object]) -> int:
    """Lines run and calls made: a loop counts even where it calls nothing."""
    count = 0

    def hook(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event in ("call", "line")
        return hook

    before = sys.gettrace()
    sys.settrace(hook)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("share", [1, 2], ids=["all in the sources", "half in the sources"])
def test_twice_the_tensors_take_twice_the_work(share: int, tmp_path: Path) -> None:
    work(tmp_path / "first", 50, 50)  # imports and caches
    once = work(tmp_path / "once", 600, 600 // share)
    twice = work(tmp_path / "twice", 1200, 1200 // share)
    assert twice <= 2.2 * once
