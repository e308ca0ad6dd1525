"""Expressions that differ in what they read share a program, and each still computes its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeengine.compiler import alike
from mergeengine.compiler.alike import Programs
from mergeengine.compiler.program import (
    Load,
    Operand,
    Program,
    Register,
    compile_expressions,
    concatenated,
)
from mergeengine.lazy import algebra
from mergeengine.lazy.dtypes import BFLOAT16
from mergeengine.lazy.nodes import Node
from mergeengine.lazy.stored import Stored, StoredFile
from mergeengine.lazy.tensor import LazyTensor, concat

FILE = StoredFile(Path("/nowhere/model.safetensors"), 1 << 40)
Make = Callable[[LazyTensor, LazyTensor, LazyTensor], LazyTensor]
EXPRESSIONS: dict[str, Make] = {
    "transfer": lambda t, b, f: t + (f - b),
    "scaled": lambda t, b, f: t + 0.3 * (f - b),
    "other factor": lambda t, b, f: t + 0.4 * (f - b),
    "other order": lambda t, b, f: (f - b) + t,
    "swapped": lambda t, b, f: t + (b - f),
    "one tensor twice": lambda t, b, f: t + (f - t),
    "shared": lambda t, b, f: (f - b) * (f - b) + t * (f - b),
    "not shared": lambda t, b, f: (f - b) * (b - f) + t * (f - t),
    "chosen": lambda t, b, f: (f > b).where(0.5, t),
    "copied": lambda t, b, f: t,
    "rows": lambda t, b, f: t[1:] + (f[1:] - b[1:]),
    "columns": lambda t, b, f: t[:, 1:] + (f[:, 1:] - b[:, 1:]),
    "turned": lambda t, b, f: t + (f - b.permute(1, 0)),
    "spread": lambda t, b, f: t * b[0:1] + f,
    "row sums": lambda t, b, f: t / b.row_sum() + f,
    "norms": lambda t, b, f: t * f.norm() / b.norm() + 1.0,
    "number alone": lambda t, b, f: (f - b).norm(),
    "joined": lambda t, b, f: concat([t + 0.5 * (f - b), b, f + 0.5 * (t - b)]),
}


def inputs(model: str, size: int) -> list[LazyTensor]:
    return [
        LazyTensor(algebra.stored(Stored(model, name, BFLOAT16, (size, size), FILE, 0)))
        for name in ("t", "b", "f")
    ]


def meaning(program: Program) -> list[Node]:
    """The expressions that a program computes: nodes in place of blocks."""
    registers: dict[Register, Node] = {}

    def value(operand: Operand) -> Node:
        return registers[operand] if isinstance(operand, Register) else operand.node

    found = {n: value(r.value) for n, r in enumerate(program.results) if r.after < 0}
    for position, each in enumerate(program.instructions):
        registers[each.register] = (
            each.view
            if isinstance(each, Load)
            else algebra.elementwise(each.op, *map(value, each.operands))
        )
        for number, result in enumerate(program.results):
            if result.after == position:
                found[number] = value(result.value)
                if result.copy is not None:
                    assert program.loads[result.copy].view is found[number]
    return [found[number] for number in range(len(program.results))]


@pytest.mark.parametrize("seed", range(3))
def test_each_expression_keeps_its_meaning(seed: int) -> None:
    programs = Programs()
    names = sorted(EXPRESSIONS)[seed:] + sorted(EXPRESSIONS)[:seed]
    for model in ("one", "two", "three"):
        for size in (3, 4, 5):
            for name in names:
                root = EXPRESSIONS[name](*inputs(model, size)).node
                for piece, (box, node) in zip(
                    programs.pieces(root), concatenated(root), strict=True
                ):
                    assert piece.box == box
                    assert meaning(piece.program) == [node]
                    alone = compile_expressions(node)
                    for fact in ("shape", "registers", "flat"):
                        assert getattr(piece.program, fact) == getattr(alone, fact)


WHOLE = sorted(set(EXPRESSIONS) - {"rows", "columns", "number alone", "joined"})


@given(st.lists(st.sampled_from(WHOLE), min_size=1, max_size=6))
def test_expressions_that_are_computed_together_keep_their_meanings(names: list[str]) -> None:
    programs = Programs()
    for model in ("one", "two"):
        roots = [EXPRESSIONS[name](*inputs(model, 4)).node for name in names]
        (piece,) = programs.pieces(*roots)
        assert meaning(piece.program) == roots
        assert piece.program.registers == compile_expressions(*roots).registers
        views = [load.view for load in piece.program.loads]
        assert len(views) == len(set(views)), "each view is read once"


@pytest.mark.parametrize("name", sorted(set(EXPRESSIONS) - {"norms", "number alone"}))
def test_expressions_alike_are_compiled_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Node] = []

    def counted(*roots: Node, **targets: Any) -> Program:
        compiled.extend(roots)
        return compile_expressions(*roots, **targets)

    monkeypatch.setattr(alike, "compile_expressions", counted)
    programs = Programs()
    programs.pieces(EXPRESSIONS[name](*inputs("one", 3)).node)
    first = len(compiled)
    for model in ("two", "three", "four"):
        programs.pieces(EXPRESSIONS[name](*inputs(model, 3)).node)
    assert len(compiled) == first
    programs.pieces(EXPRESSIONS[name](*inputs("one", 4)).node)
    assert len(compiled) == 2 * first
