"""Making the tree of a plan, each value with the place that it was made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mergeengine.plan.document import Node, Scalar
from mergeengine.values.decisions import number_text
from mergeengine.values.positions import Position


def scalar(value: Scalar, at: Position) -> Node:
    return Node(at, value, "" if value is None else str(value))


def number(value: float, at: Position) -> Node:
    """As a person writes it: 1 and not 1.0."""
    written = number_text(value)
    return Node(at, int(value) if value == int(value) and "e" not in written else value, written)


def mapping(entries: Mapping[str, Node | None], at: Position) -> Node:
    """A mapping of the entries that are there, each key in the place of its value."""
    there = {key: node for key, node in entries.items() if node is not None}
    return Node(at, dict(there), keys={key: node.position for key, node in there.items()})


def sequence(entries: Iterable[Node], at: Position) -> Node:
    return Node(at, list(entries))


def one_or_list(entries: list[Node], at: Position) -> Node:
    return entries[0] if len(entries) == 1 else sequence(entries, at)
