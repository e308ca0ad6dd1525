"""Element masks: which elements of a delta are kept, by size, sign, place or chance.

* ``top``, ``bottom``, ``above``: trimming by magnitude (Yadav et al. 2023, "TIES-Merging").
* ``sign``: agreement of signs, as TIES elects them, between two deltas or with the target's shift.
* ``drop``: DARE (Yu et al. 2024, "Language Models are Super Mario"): random elements are left out,
  the rest is rescaled, which the caller does.
* ``file``: masks or scales that were made elsewhere.
* ``orthogonal_to``: the part of a delta along a direction is projected out.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from math import ceil, inf

from mergeengine.lazy import algebra
from mergeengine.lazy.tensor import LazyTensor
from mergeengine.values.actions import (
    Above,
    Applied,
    FileMask,
    Orthogonal,
    Ranked,
    Rows,
    Sign,
)

_STEPS = 1 << 24  # of random numbers


def masked(
    delta: LazyTensor,
    actions: Iterable[Applied],
    *,
    shift: LazyTensor,
    others: Mapping[str, LazyTensor],
    stored: Callable[[FileMask], LazyTensor],
    key: Callable[[str], int],
    zero: float,
) -> LazyTensor:
    """``delta`` with the actions applied in the order given; same shape.

    ``shift`` is target - source_base; ``others`` are the deltas of all sources, by name; ``stored``
    gives a mask from a file, of the delta's shape or one column; ``key`` the key of random numbers
    for a level of masks. Elements that are left out become
    ``zero``: the zero, of two, that changes nothing where it is scaled and added. What is not a
    number is never left out for its size or sign, so that it is found in the result.
    """
    for applied in actions:
        action = applied.action
        if _is_zero(delta) or not delta.node.numel:
            break
        if isinstance(action, Orthogonal):
            delta = orthogonal(delta, shift, action.beta)
            continue
        if isinstance(action, FileMask):
            scale = stored(action)
            if not _is_zero(scale):
                scaled = delta * scale
                delta = scaled if scale.node.op == "constant" else scale.where(scaled, zero)
                continue
            kept: LazyTensor | None = None
        elif isinstance(action, Rows):
            ranges = action.within(delta.shape[0])
            assert ranges is not None, "checked by the caller"
            kept = LazyTensor(algebra.rows(ranges, delta.shape))
        elif isinstance(action, Above):
            kept = (abs(delta) > action.limit) + _not_a_number(delta)
        elif isinstance(action, Ranked):
            if action.count(delta.node.numel) == delta.node.numel:
                continue
            kept = ranked(delta, action.count(delta.node.numel), action.key)
            if action.key == "bottom":
                kept = kept + _not_a_number(delta)
        elif isinstance(action, Sign):
            other = shift if action.of is None else others.get(action.of)
            if other is None or _is_zero(other):  # nothing agrees: the delta is not even read
                kept = None
            else:
                kept = same_sign(delta, other) + _not_a_number(delta)
        else:
            kept = surviving(delta, action.probability, key(applied.level))
        delta = delta * 0.0 if kept is None else kept.where(delta, zero)
    return delta


def orthogonal(delta: LazyTensor, direction: LazyTensor, beta: float) -> LazyTensor:
    """``delta - beta * <delta, direction> / <direction, direction> * direction``, the products over
    all elements in float64. A direction of zeros leaves the delta."""
    if _is_zero(direction):
        return delta
    square = (direction * direction).sum()
    along = (delta * direction).sum() / square.eq(0.0).where(1.0, square)
    return delta - (beta * along) * direction


def ranked(delta: LazyTensor, count: int, end: str) -> LazyTensor:
    """1 at the ``count`` elements of largest (``top``) or smallest (``bottom``) magnitude.

    Of equal ones those that come first are taken; what is not a number ranks as infinite.
    """
    elements = delta.node.numel
    size = abs(delta)
    size = size.eq(size).where(size, inf)
    limit = size.kth_magnitude(count if end == "top" else elements - count + 1)
    which: algebra.End = "largest" if end == "top" else "smallest"
    place = algebra.kth_place(size.node, limit.node, count, which)
    first = LazyTensor(algebra.upto(place, delta.shape))
    beyond = size > limit if end == "top" else limit > size
    return beyond + size.eq(limit) * first


def same_sign(one: LazyTensor, other: LazyTensor) -> LazyTensor:
    """1 where both are positive or both negative; zeros and NaN agree with nothing."""
    zero = LazyTensor(algebra.constant(0.0))
    return (one > 0.0) * (other > 0.0) + (zero > one) * (zero > other)


def surviving(delta: LazyTensor, dropped: float, key: int) -> LazyTensor:
    """1 where a random number is not below the probability to be dropped (rounded up to its 24
    bits, so that every arithmetic draws the same)."""
    limit = ceil(dropped * _STEPS) / _STEPS
    return LazyTensor(algebra.random(key, delta.shape)) >= limit


def random_key(seed: int, source: str, level: str, tensor: str) -> int:
    """The 64-bit key of a tensor's random numbers; those of other keys have nothing to do with
    them."""
    text = "\0".join((str(seed), source, level, tensor))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _not_a_number(tensor: LazyTensor) -> LazyTensor:
    """1 where it is NaN, else 0."""
    return tensor.eq(tensor).eq(0.0)


def _is_zero(tensor: LazyTensor) -> bool:
    return algebra.is_constant(tensor.node, 0.0)
