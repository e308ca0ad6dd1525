"""Programs of expressions that differ in nothing but the tensors they read, compiled once.

A model has thousands of tensors and few shapes, so compiling each expression anew would be most of
the planning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mergeengine.compiler.program import (
    Load,
    Piece,
    Program,
    beside,
    compile_expressions,
    contiguous,
    is_scalar,
)
from mergeengine.lazy.nodes import Node

Form = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Compiled:
    """The first program of a form, and which of its views each instruction loads (None: none)."""

    program: Program
    views: tuple[int | None, ...]


class Programs:
    """The programs of one plan, by the form of their expressions."""

    def __init__(self) -> None:
        self._compiled: dict[Form, _Compiled] = {}

    def pieces(self, *roots: Node, targets: Sequence[Node | None] = ()) -> tuple[Piece, ...]:
        """The programs that together cover ``roots``, which are of one ``grid``."""
        targets = targets or [None] * len(roots)
        if len(roots) == 1:
            parts = beside(roots[0], targets[0])
            return tuple([Piece(box, self.program(node, targets=[to])) for box, node, to in parts])
        return tuple(
            Piece(
                parts[0][0],
                self.program(*[part[1] for part in parts], targets=[part[2] for part in parts]),
            )
            for parts in zip(*map(beside, roots, targets), strict=True)
        )

    def program(self, *roots: Node, targets: Sequence[Node | None]) -> Program:
        """What ``compile_expressions`` makes of expressions of this form, with their own views."""
        views: list[Node] = []
        form = _form(roots, targets, views)
        if form is None:
            return compile_expressions(*roots, targets=targets)
        known = self._compiled.get(form)
        if known is None:
            program = compile_expressions(*roots, targets=targets)
            places = {view: place for place, view in enumerate(views)}
            loaded = [places[i.view] if isinstance(i, Load) else None for i in program.instructions]
            self._compiled[form] = _Compiled(program, tuple(loaded))
            return program
        instructions = [
            instruction if place is None else Load(instruction.register, views[place])
            for instruction, place in zip(known.program.instructions, known.views, strict=True)
        ]
        return replace(known.program, instructions=tuple(instructions))


def _form(
    roots: tuple[Node, ...], targets: Sequence[Node | None], views: list[Node]
) -> Form | None:
    """All that a program depends on apart from its views, which are gathered in ``views``.

    The nodes from the roots down, depth first, one met again as its number. None where numbers of
    earlier passes take part: these belong to one expression alone.
    """
    form: list[Any] = []
    numbers: dict[Node, int] = {}
    stack = list(reversed(roots))
    while stack:
        node = stack.pop()
        if node in numbers:
            form.append(numbers[node])
            continue
        numbers[node] = len(numbers)
        if node.op == "constant":
            form.append(node)
        elif node.shape == () and is_scalar(node):
            return None
        elif node.kind == "elementwise":
            form += (node.op, node.shape)
            stack += node.inputs
        else:
            form += (node.shape, contiguous(node))
            views.append(node)
    for target in targets:  # which of the nodes it is, if any
        form.append(None if target is None else numbers.get(target, -1))
    return tuple(form)
