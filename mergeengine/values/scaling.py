"""How strongly a delta is applied: the one home of scaling."""

from __future__ import annotations

from dataclasses import dataclass, field

from mergeengine.values.anatomy import TensorFacts
from mergeengine.values.decisions import Decision, number_text
from mergeengine.values.positions import Position


@dataclass(frozen=True, slots=True)
class Scaling:
    """The factor of a delta, resolved per tensor by `at`."""

    value: float = 1.0
    position: Position | None = field(default=None, compare=False)

    def at(self, tensor: TensorFacts) -> Decision:
        """The number that holds for a tensor."""
        if self.position is None:
            return Decision(self.value)
        return Decision(self.value, self.position, self.text)

    @property
    def text(self) -> str:
        return f"scaling: {number_text(self.value)}"
