"""Coefficients that come from the norms of the tensors themselves.

Norms are Frobenius norms of whole tensors, summed in float64. A norm of zero: where the delta is
zero the coefficient is 0, and nothing is divided by it; where the target is zero, so is every ratio
to it, and the coefficient is 0 too. A delta with NaN makes the coefficient NaN.
"""

from mergeengine.lazy.tensor import LazyTensor


def to_ratio(target: LazyTensor, delta: LazyTensor, ratio: float) -> LazyTensor:
    """The α for which ‖α · delta‖ = ratio · ‖target‖; negative where the ratio is."""
    size = delta.norm()
    return size.eq(0).where(0.0, ratio * target.norm() / size)


def at_most(target: LazyTensor, delta: LazyTensor, factor: float, ratio: float) -> LazyTensor:
    """``factor``, made smaller where ‖factor · delta‖ would exceed ratio · ‖target‖."""
    least = to_ratio(target, delta, ratio).minimum(abs(factor))
    return -least if factor < 0 else least
