"""Which models of a configuration stand side by side: the base, and the sources of the plan.

A source of the plan is what stands in one place of every slice: layers of models put on top of
each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergeengine.mergekit.config import Config, Input, Slice
from mergeengine.mergekit.methods import WEIGHT
from mergeengine.mergekit.models import Model
from mergeengine.mergekit.nodes import mapping, sequence
from mergeengine.mergekit.settings import Layers, layers_node
from mergeengine.plan.document import Node
from mergeengine.plan.problems import Problems
from mergeengine.values.positions import Position


@dataclass(frozen=True, slots=True)
class Cell:
    """An input in its slice. ``fills``: the slice has none here; it gets the weight 0."""

    slice: Slice
    input: Input
    fills: bool = False


Column = tuple[Cell, ...]
"""The cells of one place, a slice each."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """``base`` is None where models themselves are merged. ``layers``: each slice's in the output;
    of whole models one, of which nobody asks."""

    base: Column | None
    sources: tuple[Column, ...]
    layers: tuple[Layers, ...]


def arrange(config: Config, problems: Problems) -> Arrangement | None:
    """None, and problems, where the inputs do not fit the method."""
    rows = [_row(config, each, problems) for each in config.slices]
    if any(row is None for row in rows):
        return None
    rest = [(each, row[0], row[1]) for each, row in zip(config.slices, rows, strict=True) if row]
    most = max(len(inputs) for _, _, inputs in rest)
    columns: list[list[Cell]] = [[] for _ in range(most)]
    bases: list[Cell] = []
    known = len(problems.found)
    for part, base, inputs in rest:
        if base is not None:
            bases.append(Cell(part, base))
        stand_in = [*([] if base is None else [base]), *inputs][-1]
        if len(inputs) < most and not _fills(config):
            problems.add(
                part.position,
                f"another slice merges {most} models and this one {len(inputs)}: without weights "
                f"(`{config.method.name}` has none) each slice needs as many",
            )
        for place in range(most):
            there = place < len(inputs)
            cell = Cell(part, inputs[place] if there else stand_in, not there)
            columns[place].append(cell)
    if bases and len(bases) < len(rest):
        problems.add(config.method_position, "some slices have a base model and others none")
    if not columns:
        problems.add(config.method_position, "there is no model besides the base: nothing to merge")
    if len(problems.found) > known:
        return None
    order = columns
    base_column = tuple(bases) if bases else None
    if config.method.name == "slerp" and base_column is not None:
        order, base_column = [list(base_column), *columns], None
    return Arrangement(base_column, tuple(map(tuple, order)), _layers(config.slices))


def _fills(config: Config) -> bool:
    return any(each.native == WEIGHT and each.name == "weight" for each in config.method.parameters)


def _row(
    config: Config, part: Slice, problems: Problems
) -> tuple[Input | None, list[Input]] | None:
    """The base of a slice, and its other inputs."""
    method, wanted = config.method, part.base or config.base
    inputs = list(part.inputs)
    found = next((each for each in inputs if each.model == wanted), None)
    if wanted is not None and found is None and not config.stacked:
        found = Input(wanted, None, None, wanted.position)
        inputs.append(found)
    if method.base == "none":
        return None, inputs
    if found is None:
        if wanted is None and method.base == "optional":
            return None, inputs
        message = (
            f"`base_model` is missing: `{method.name}` merges what was changed in it"
            if wanted is None
            else f"the base model `{wanted.written}` is not among the sources of this slice"
        )
        problems.add(config.method_position if wanted is None else part.position, message)
        return None
    return found, [each for each in inputs if each is not found]


def _layers(slices: Sequence[Slice]) -> tuple[Layers, ...]:
    found: list[Layers] = []
    start = 0
    for part in slices:
        counts = [b - a + 1 for a, b in (each.layers for each in part.inputs if each.layers)]
        count = counts[0] if counts else 1
        found.append((start, start + count - 1))
        start += count
    return tuple(found)


def check_layers(config: Config, problems: Problems) -> None:
    """A problem for every slice whose inputs have not equally many layers."""
    for part in config.slices:
        spans = [each.layers for each in part.inputs if each.layers is not None]
        if len({last - first for first, last in spans}) > 1:
            texts = ", ".join(f"[{first}, {last + 1}]" for first, last in spans)
            problems.add(
                part.position, f"the sources of a slice need equally many layers, found {texts}"
            )


def model_node(column: Column, base: Model | None = None) -> Node:
    """The model of a place: as it is, or as a stack. ``base`` is what adapters may leave out."""
    if column[0].input.layers is None:
        return column[0].input.model.node(base)
    parts: list[tuple[Model, Layers, Position]] = []
    for cell in column:
        model, span, at = cell.input.model, cell.input.layers, cell.input.position
        assert span is not None
        if parts and parts[-1][0] == model and parts[-1][1][1] + 1 == span[0]:  # it goes on
            _, before, at = parts.pop()
            span = before[0], span[1]
        parts.append((model, span, at))
    slabs = [
        mapping({"model": model.node(), "layers": layers_node(span, at)}, at)
        for model, span, at in parts
    ]
    at = column[0].input.position
    return mapping({"stack": sequence(slabs, at)}, at)


def moved(column: Column, layers: Sequence[Layers]) -> bool:
    """Whether layers get other numbers than they have in their models."""
    pairs = zip(column, layers, strict=True)
    return any(cell.input.layers not in (None, span) for cell, span in pairs)
