"""Planning takes work in proportion to the number of tensors, counted and not timed."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from steps import steps

from benchmarks.planning import make_experts, make_plan
from mergeengine.compiler import alike
from mergeengine.compiler.program import Program, compile_expressions
from mergeengine.lazy.nodes import Node
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


def test_a_tensor_more_takes_so_much_work_and_no_more(tmp_path: Path) -> None:
    """They were 1970 before programs were shared and files sampled where tensors meet, then 1314,
    and are 1530 with names, remote files, adapters, vocabularies and losses to rounding looked at.
    Raise the limit for what is worth it; what is repeated without need shows here."""
    work(tmp_path / "first", 50, 50)  # imports and caches
    more = work(tmp_path / "more", 1200, 1200) - work(tmp_path / "less", 600, 600)
    assert more / 600 <= 1550


def test_tensors_of_one_shape_are_compiled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Node] = []

    def counted(*roots: Node, **targets: Any) -> Program:
        compiled.extend(roots)
        return compile_expressions(*roots, **targets)

    monkeypatch.setattr(alike, "compile_expressions", counted)
    work(tmp_path / "models", 600, 600)
    assert len(compiled) == 4  # embedding and head, norm, two shapes of experts


def test_versions_of_a_tensor_have_hashes_of_their_own(tmp_path: Path) -> None:
    """Interning compares what has one hash, field by field."""
    path = make_plan(tmp_path, partial(make_experts, tensors=50))
    bound = prepare(load_plan(path)).binding.tensors
    stored = [held for each in bound for held in (each.origin, each.deltas[0].base)]
    assert len({hash(held) for held in stored}) == 2 * len(bound)


@pytest.mark.parametrize("share", [1, 2], ids=["all in the sources", "half in the sources"])
def test_twice_the_tensors_take_twice_the_work(share: int, tmp_path: Path) -> None:
    work(tmp_path / "first", 50, 50)  # imports and caches
    once = work(tmp_path / "once", 600, 600 // share)
    twice = work(tmp_path / "twice", 1200, 1200 // share)
    assert twice <= 2.2 * once
