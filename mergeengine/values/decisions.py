"""A number as resolved for one tensor, and the line of the plan that decided it."""

from __future__ import annotations

from dataclasses import dataclass, field

from mergeengine.values.positions import Position


@dataclass(frozen=True, slots=True)
class Decision:
    """`text` is what the plan says, as a reader would write it; no position: a default."""

    value: float
    position: Position | None = field(default=None, compare=False)
    text: str = field(default="default", compare=False)


def number_text(value: float) -> str:
    """The shortest text that reads back as the same number: ``0.5``, ``1``, ``1e-07``."""
    text = repr(float(value))
    return text.removesuffix(".0")
