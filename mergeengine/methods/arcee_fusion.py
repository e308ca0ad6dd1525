"""Arcee Fusion (Arcee AI 2025, "Meet MergeKit v0.1", blog)."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.registry import Nothing, Term, method, number

_EPS = 1e-8
_LARGEST = 700.0  # beyond which an exponential has no float64


@dataclass(frozen=True, slots=True)
class Parameters:
    spread: float = number(1.5, "interquartile ranges above the median that an importance must be")


@method(
    "arcee_fusion",
    paper='Arcee AI 2025, "Meet MergeKit v0.1: Arcee Fusion" (blog)',
    parameters=Parameters,
    weighted=False,
    sources=(1, 1),
)
def arcee_fusion(
    target: LazyTensor, terms: Sequence[Term[Nothing]], parameters: Parameters
) -> LazyTensor:
    """Take over the elements whose change matters most, and leave the others.

    An element's importance is |δ| · KL(softmax(target + δ) ‖ softmax(target)), the distributions
    along its row (the last dimension). Elements are changed whose importance is at least the median
    + `spread` · the interquartile range of the tensor's.
    """
    delta = terms[0].value
    count = delta.node.numel
    if not count:
        return delta
    importance = abs(delta) * _divergence(target + delta, target)
    median = importance.kth_magnitude(count - (count - 1) // 2)
    low, high = (_quantile(importance, Fraction(quarter, 4)) for quarter in (1, 3))
    limit = median + parameters.spread * (high - low)
    return (importance >= limit).where(delta, -0.0)


def _divergence(one: LazyTensor, other: LazyTensor) -> LazyTensor:
    """Of the distributions that the rows of two tensors are, in float64; shape (..., 1)."""
    p, q = (_softmax(each) + _EPS for each in (one, other))
    return _along_rows(p * (p / q).log())


def _softmax(values: LazyTensor) -> LazyTensor:
    grown = values.minimum(_LARGEST).exp()
    return grown / _along_rows(grown)


def _along_rows(values: LazyTensor) -> LazyTensor:
    """Sums over the last dimension."""
    dimensions = len(values.shape)
    return values.row_sum(dimensions - 1) if dimensions > 1 else values.sum()


def _quantile(values: LazyTensor, share: Fraction) -> LazyTensor:
    """Of values that are not negative, between the two nearest by linear interpolation."""
    count = values.node.numel
    place = share * (count - 1)
    below = int(place)
    low = values.kth_magnitude(count - below)
    if place == below:
        return low
    high = values.kth_magnitude(count - below - 1)
    return low + float(place - below) * (high - low)
