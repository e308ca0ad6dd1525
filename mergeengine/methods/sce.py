"""SCE (Wan et al. 2024, "FuseChat: Knowledge Fusion of Chat Models", arXiv:2408.07990)."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from mergeengine.lazy import algebra
from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.combining import added, zeros
from mergeengine.methods.registry import Nothing, Term, method, number
from mergeengine.methods.sphere import number_of

_LEAST = 1e-6  # a sum of mean squares below this tells nothing


@dataclass(frozen=True, slots=True)
class Parameters:
    select_topk: float = number(
        1.0, "share of the elements that differ between deltas which is kept", least=0, most=1
    )


@method(
    "sce",
    paper='Wan et al. 2024, "FuseChat: Knowledge Fusion of Chat Models", arXiv:2408.07990',
    parameters=Parameters,
    weighted=False,
)
def sce(target: LazyTensor, terms: Sequence[Term[Nothing]], parameters: Parameters) -> LazyTensor:
    """Select the elements of largest variance across deltas, calculate weights from their squares,
    and erase those of the minority's sign.

    With `select_topk` below 1, ⌊select_topk · m⌋ elements are selected where m have a variance
    above 0, of equal ones the first. A delta's weight is the mean of its squared elements, divided
    by the sum of these means, or 1/N where that is below 1e-6. Elements are merged by weight among
    those of the sign that the sum of the deltas has.
    """
    deltas = [term.value for term in terms]
    if parameters.select_topk == 0:
        return zeros(target)
    if parameters.select_topk < 1 and target.node.numel:
        chosen = _varying(deltas, parameters.select_topk)
        deltas = [chosen.where(delta, -0.0) for delta in deltas]
    squares = [(delta * delta).sum() for delta in deltas]
    numel = max(1, target.node.numel)
    weights = [number_of(_weight, squares, which, numel) for which in range(len(deltas))]
    return _agreeing(deltas, weights)


def _agreeing(deltas: Sequence[LazyTensor], weights: Sequence[LazyTensor]) -> LazyTensor:
    """As the election of TIES, but by the plain sum of the deltas."""
    positive = added(deltas) >= 0.0
    zero = LazyTensor(algebra.constant(0.0))
    agree = [positive.where(delta > 0.0, zero > delta) for delta in deltas]
    parts = zip(agree, deltas, weights, strict=True)
    total = added([one.where(weight * delta, -0.0) for one, delta, weight in parts])
    counted = added([one * weight for one, weight in zip(agree, weights, strict=True)])
    return total / counted.eq(0.0).where(1.0, counted)


def _varying(deltas: Sequence[LazyTensor], share: float) -> LazyTensor:
    """1 at the elements of largest variance."""
    count = float(len(deltas))
    mean = added(deltas) / count
    variance = added([(delta - mean) * (delta - mean) for delta in deltas]) / count
    varying = (variance > 0.0).sum()
    part = Fraction(repr(float(share)))
    limit = algebra.share_magnitude(variance.node, part, varying.node)
    place = algebra.share_place(variance.node, limit, part, varying.node)
    first = LazyTensor(algebra.upto(place, variance.shape))
    least = LazyTensor(limit)
    return (variance > least) + variance.eq(least) * first


def _weight(which: int, numel: int, *squares: float) -> float:
    means = [square / numel for square in squares]
    total = sum(means)
    return 1 / len(means) if abs(total) < _LEAST else means[which] / total
