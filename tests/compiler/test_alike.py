"""Expressions that differ in what they read share a program, and each still computes its own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mergeengine.compiler import alike
from mergeengine.compiler.alike import Programs
from mergeengine.compiler.program import (
    Load,
    Operand,
    Program,
    Register,
    compile_expression,
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


def meaning(program: Program) -> Node:
    """The expression that a program computes: nodes in place of blocks."""
    registers: dict[Register, Node] = {}

    def value(operand: Operand) -> Node:
        return registers[operand] if isinstance(operand, Register) else operand.node

    for each in program.instructions:
        registers[each.register] = (
            each.view
            if isinstance(each, Load)
            else algebra.elementwise(each.op, *map(value, each.operands))
        )
    return value(program.result)


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
                    assert meaning(piece.program) is node
                    alone = compile_expression(node)
                    for fact in ("shape", "registers", "flat"):
                        assert getattr(piece.program, fact) == getattr(alone, fact)


@pytest.mark.parametrize("name", sorted(set(EXPRESSIONS) - {"norms", "number alone"}))
def test_expressions_alike_are_compiled_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Node] = []

    def counted(root: Node) -> Program:
        compiled.append(root)
        return compile_expression(root)

    monkeypatch.setattr(alike, "compile_expression", counted)
    programs = Programs()
    programs.pieces(EXPRESSIONS[name](*inputs("one", 3)).node)
    first = len(compiled)
    for model in ("two", "three", "four"):
        programs.pieces(EXPRESSIONS[name](*inputs(model, 3)).node)
    assert len(compiled) == first
    programs.pieces(EXPRESSIONS[name](*inputs("one", 4)).node)
    assert len(compiled) == 2 * first
