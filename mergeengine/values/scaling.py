"""How strongly a delta is applied: the one home of scaling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from mergeengine.values.anatomy import TensorFacts
from mergeengine.values.decisions import Decision
from mergeengine.values.parameters import Number, Parameter
from mergeengine.values.positions import Position

Measure = Literal["factor", "ratio"]


@dataclass(frozen=True, slots=True)
class Scaling:
    """The factor of a delta, resolved per tensor.

    As a ``factor`` the number is the coefficient α itself; as a ``ratio`` it is what the delta's
    norm becomes: ‖α · delta‖ = ratio · ‖target‖. `at_most` bounds that ratio for a factor.
    """

    amount: Parameter = field(default_factory=lambda: Parameter("scaling", Number(1.0)))
    measure: Measure = "factor"
    at_most: Parameter | None = None

    @classmethod
    def constant(cls, value: float, position: Position | None = None) -> Scaling:
        """One factor for every tensor."""
        return cls(Parameter("scaling", Number(value), position))

    def at(self, tensor: TensorFacts) -> Decision:
        """The factor or ratio that holds for a tensor."""
        return self.amount.at(tensor)

    def limit_at(self, tensor: TensorFacts) -> Decision | None:
        """The most that the delta's norm may be, relative to the target's; None: no bound."""
        return None if self.at_most is None else self.at_most.at(tensor)

    def parameters(self) -> Iterator[Parameter]:
        yield self.amount
        if self.at_most is not None:
            yield self.at_most
