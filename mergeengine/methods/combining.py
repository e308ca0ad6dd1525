"""Weighted sums of deltas, with and without agreement on the sign.

A sum is divided by the sum of its weights where a method normalises: by 1 where that is less than
`TINY`, so that weights that cancel leave the plain sum. Elements that take no part become the zero
that changes nothing where it is added to a target, -0.0 included.
"""

from collections.abc import Sequence

from mergeengine.lazy import algebra
from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.registry import Coefficient

TINY = 1e-8


def is_zero(value: LazyTensor | float) -> bool:
    """Whether a value is zero whatever the tensors are."""
    if isinstance(value, LazyTensor):
        return algebra.is_constant(value.node, 0.0)
    return value == 0


def nothing(weight: Coefficient) -> float:
    """The zero that times ``weight`` is -0.0."""
    return 0.0 if isinstance(weight, float) and weight < 0 else -0.0


def zeros(like: LazyTensor) -> LazyTensor:
    return LazyTensor(algebra.constant(0.0, like.shape))


def added(values: Sequence[LazyTensor]) -> LazyTensor:
    """The sum of one tensor or more, in the order given."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def summed(values: Sequence[LazyTensor], weights: Sequence[Coefficient]) -> LazyTensor:
    """Each value times its weight, added in the order given. A weight of 0 leaves its value out."""
    return added([weight * value for value, weight in zip(values, weights, strict=True)])


def normaliser(weights: Sequence[Coefficient]) -> Coefficient:
    """What a weighted sum is divided by to be a mean."""
    total: Coefficient = 0.0
    for weight in weights:
        total = total + weight
    if isinstance(total, LazyTensor):
        return (abs(total) >= TINY).where(total, 1.0)
    return total if abs(total) >= TINY else 1.0


def merged(
    values: Sequence[LazyTensor],
    weights: Sequence[Coefficient],
    *,
    agree: bool,
    normalize: bool,
    scale: float,
) -> LazyTensor:
    """``scale`` times the weighted sum or mean; where signs have to ``agree``, of the elements that
    have the elected sign (`agreeing`), and the weights that count are theirs."""
    if scale == 0:
        return zeros(values[0])
    total = agreeing(values, weights, normalize) if agree else summed(values, weights)
    if normalize and not agree:
        total = total / normaliser(weights)
    return scale * total


def agreeing(
    values: Sequence[LazyTensor], weights: Sequence[Coefficient], normalize: bool
) -> LazyTensor:
    """TIES' election (Yadav et al. 2023): of each element the weighted values are added that have
    the sign of the sum of all. A sum of 0 elects the positive; zeros agree with nothing."""
    parts = [
        (weight * value, weight)
        for value, weight in zip(values, weights, strict=True)
        if not (is_zero(value) or is_zero(weight))
    ]
    if not parts:
        return zeros(values[0])
    positive = added([part for part, _ in parts]) >= 0.0
    zero = LazyTensor(algebra.constant(0.0))
    agree = [positive.where(part > 0.0, zero > part) for part, _ in parts]
    total = added([one.where(part, -0.0) for one, (part, _) in zip(agree, parts, strict=True)])
    if not normalize:
        return total
    counted = added([one * weight for one, (_, weight) in zip(agree, parts, strict=True)])
    return total / counted.eq(0.0).where(1.0, counted)
