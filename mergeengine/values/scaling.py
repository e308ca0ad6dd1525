"""How strongly a delta is applied: the one home of scaling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from mergeengine.values.anatomy import TensorFacts
from mergeengine.values.decisions import Decision
from mergeengine.values.parameters import Number, Parameter
from mergeengine.values.positions import Position
from mergeengine.values.selectors import Selector, first_match

Measure = Literal["factor", "ratio"]


@dataclass(frozen=True, slots=True)
class Scaling:
    """The factor of a delta, resolved per tensor.

    As a ``factor`` the number is the coefficient α itself; as a ``ratio`` it is what the delta's
    norm becomes: ‖α · delta‖ = ratio · ‖target‖. `at_most` bounds that ratio for a factor. Where
    there are `rules`, the first that matches a tensor decides for it, and the last matches all.
    """

    amount: Parameter = field(default_factory=lambda: Parameter("scaling", Number(1.0)))
    measure: Measure = "factor"
    at_most: Parameter | None = None
    rules: tuple[ScalingRule, ...] = ()

    @classmethod
    def constant(cls, value: float, position: Position | None = None) -> Scaling:
        """One factor for every tensor."""
        return cls(Parameter("scaling", Number(value), position))

    def at(self, tensor: TensorFacts) -> Decision:
        """The factor or ratio that holds for a tensor."""
        if not self.rules:
            return self.amount.at(tensor)
        rule = self._rule_at(tensor)
        inner = rule.scaling.at(tensor)
        text = inner.text if inner.position else rule.scaling.amount.text
        position = inner.position or rule.position
        return Decision(inner.value, position, f"{rule.selector.whom}, {text}")

    def limit_at(self, tensor: TensorFacts) -> Decision | None:
        """The most that the delta's norm may be, relative to the target's; None: no bound."""
        if self.rules:
            return self._rule_at(tensor).scaling.limit_at(tensor)
        return None if self.at_most is None else self.at_most.at(tensor)

    def measure_at(self, tensor: TensorFacts) -> Measure:
        """What the number of a tensor is."""
        return self._rule_at(tensor).scaling.measure if self.rules else self.measure

    def _rule_at(self, tensor: TensorFacts) -> ScalingRule:
        rule = first_match(self.rules, tensor)
        assert rule is not None
        return rule

    def parameters(self) -> Iterator[Parameter]:
        """Every number inside; those of rules instead of what they take the place of."""
        for rule in self.rules:
            yield from rule.scaling.parameters()
        if not self.rules:
            yield self.amount
            if self.at_most is not None:
                yield self.at_most


@dataclass(frozen=True, slots=True)
class ScalingRule:
    """The scaling of the tensors of one selector, which has no rules of scaling itself."""

    selector: Selector
    scaling: Scaling
    position: Position | None = field(default=None, compare=False)
