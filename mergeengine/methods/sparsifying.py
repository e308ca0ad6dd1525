"""Leaving elements of a delta out: by magnitude, and by chance with what is left rescaled."""

from fractions import Fraction

from mergeengine.lazy import algebra
from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.combining import is_zero, nothing, zeros
from mergeengine.methods.masking import ranked, surviving
from mergeengine.methods.registry import Coefficient, choice


def share_of(share: float, count: int) -> int:
    """``floor(share * count)`` of the decimal number as written, so that 0.29 of 100 are 29."""
    return int(Fraction(repr(float(share))) * count)


def trimmed(delta: LazyTensor, density: float, weight: Coefficient) -> LazyTensor:
    """The max(1, floor(density * n)) elements of largest magnitude, of equal ones the first."""
    elements = delta.node.numel
    if density >= 1 or is_zero(delta) or not elements:
        return delta
    if density == 0:
        return zeros(delta)
    kept = ranked(delta, max(1, share_of(density, elements)), "top")
    return kept.where(delta, nothing(weight))


def between(delta: LazyTensor, density: float, gamma: float, weight: Coefficient) -> LazyTensor:
    """Without the share ``gamma`` of largest magnitude; of the rest, the largest so that the share
    ``density`` is left. Where that is more than there are, fewer of the largest go."""
    elements = delta.node.numel
    if density >= 1 or is_zero(delta) or not elements:
        return delta
    count = share_of(density, elements)
    if count == 0:
        return zeros(delta)
    dropped = min(share_of(gamma, elements), elements - count)
    kept = ranked(delta, count + dropped, "top") if count + dropped < elements else None
    if dropped:
        largest = ranked(delta, dropped, "top")
        kept = largest.eq(0.0) if kept is None else kept * largest.eq(0.0)
    return delta if kept is None else kept.where(delta, nothing(weight))


def by_chance(
    delta: LazyTensor,
    density: float,
    rescale: str,
    weight: Coefficient,
    key: int,
    chances: LazyTensor | None = None,
) -> LazyTensor:
    """Each element stays with probability ``density``, or with its own of ``chances``.

    ``rescale`` is ``density``: what stays is divided by the probability; ``norm``: multiplied so
    that the sum of magnitudes is that of the delta; ``none``.
    """
    if is_zero(delta) or not delta.node.numel or (density >= 1 and chances is None):
        return delta
    if density == 0:
        return zeros(delta)
    if chances is None:
        kept = surviving(delta, 1 - density, key)
    else:
        kept = chances > LazyTensor(algebra.random(key, delta.shape))
    left = nothing(weight)
    if rescale == "density":
        return kept.where(delta / (density if chances is None else chances), left)
    if rescale == "norm":
        staying = kept.where(abs(delta), 0.0).sum()
        factor = staying.eq(0.0).where(1.0, abs(delta).sum() / staying)
        return kept.where(delta * factor, left)
    return kept.where(delta, left)


def rescaling() -> str:
    """The parameter ``rescale`` of random methods."""
    rescale: str = choice(
        "density",
        "what makes up for dropped elements: `density` divides what stays by its probability, as "
        "the paper does; `norm` keeps the sum of magnitudes, as mergekit does; or `none`",
        "density",
        "norm",
        "none",
    )
    return rescale
