"""Tensors of torch as expressions over what lies contiguous in a file.

Element i of a tensor is at offset + Σ iₖ · strideₖ of its storage, in any order of dimensions, with
gaps, or with a stride of 0 for what is repeated. The arrays of the graph are row-major, so a tensor
becomes a view of such an array: the dimensions in descending order of stride, each with the length
that the strides around it say; a part of that, or every so many-th; and the dimensions put back.
"""

from collections.abc import Callable
from itertools import pairwise
from math import gcd

from mergeengine.lazy import algebra
from mergeengine.lazy.nodes import Node, Shape

_MOST_TAKEN = 1 << 20  # indices of a dimension that has steps: each is held

Array = Callable[[int, Shape], Node]
"""``array(start, shape)``: the row-major array that begins at an element of the storage."""


def strided(array: Array, numel: int, offset: int, shape: Shape, strides: Shape) -> Node:
    """The tensor over a storage of ``numel`` elements; ValueError says why there is none."""
    if 0 in shape:
        return array(0, shape)
    spans = [(n - 1) * step for n, step in zip(shape, strides, strict=True)]
    if offset + sum(spans) >= numel:
        raise ValueError(
            f"reaches to element {offset + sum(spans)} of a storage of {numel}: the file is damaged"
        )
    if _is_contiguous(shape, strides):
        return array(offset, shape)
    # What has one element, or one that is repeated, is in front, of length 1 in the array.
    single = [d for d, n in enumerate(shape) if n == 1 or not strides[d]]
    moving = sorted(set(range(len(shape))) - set(single), key=lambda d: -strides[d])
    dims = [(shape[d], strides[d]) for d in moving]
    node = _view(array, numel, offset, dims, [shape[d] for d in single])
    placed = [*single, *moving]
    return algebra.permute(node, [placed.index(d) for d in range(len(shape))])


def _is_contiguous(shape: Shape, strides: Shape) -> bool:
    expected = 1
    for n, step in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and step != expected:
            return False
        expected *= n
    return True


def _view(
    array: Array, numel: int, offset: int, dims: list[tuple[int, int]], repeats: list[int]
) -> Node:
    """The tensor of these (length, stride), strides descending, behind what is repeated."""
    ones = (1,) * len(repeats)
    if dims and dims[0][0] == 1:
        return _view(array, numel, offset, dims[1:], [*repeats, 1])
    if not dims:
        return _repeated(array(offset, ones), repeats)
    # One step along dimension k of the array is over so many elements of the storage.
    units = [gcd(*(step for _, step in dims[: k + 1])) for k in range(len(dims) - 1)] + [1]
    steps = [step // unit for (_, step), unit in zip(dims, units, strict=True)]
    spans = [(n - 1) * step + 1 for (n, _), step in zip(dims, steps, strict=True)]
    lengths = [outer // unit for outer, unit in pairwise(units)]
    if any(span > length for span, length in zip(spans[1:], lengths, strict=True)):
        raise ValueError("has strides by which its elements overlap: save it with contiguous()")
    row, *starts = _digits(offset, units)
    base = row * units[0]
    if any(a + span > n for a, span, n in zip(starts, spans[1:], lengths, strict=True)):
        starts, base = [0] * len(lengths), offset
    if base + spans[0] * units[0] > numel:
        # The last row is not there to its end: it is an array of its own.
        (n, step), *rest = dims
        first = _view(array, numel, offset, [(n - 1, step), *rest], repeats)
        last = _view(array, numel, offset + (n - 1) * step, rest, [*repeats, 1])
        return algebra.concat([first, last], len(repeats))
    node = array(base, (*ones, spans[0], *lengths))
    parts = [(a, a + span) for a, span in zip((0, *starts), spans, strict=True)]
    node = algebra.slice_box(node, (*((0, 1) for _ in ones), *parts))
    for dimension, (span, step) in enumerate(zip(spans, steps, strict=True), len(repeats)):
        if step > 1:
            if span // step >= _MOST_TAKEN:
                raise ValueError(
                    f"takes every {step}th of many elements: save it with contiguous()"
                )
            node = algebra.take(node, range(0, span, step), dimension)
    return _repeated(node, repeats)


def _repeated(node: Node, repeats: list[int]) -> Node:
    """The leading dimensions, of length 1, each so many times."""
    rest = node.shape[len(repeats) :]
    return algebra.repeat(node, (*repeats, *(1 for _ in rest)), (*repeats, *rest))


def _digits(offset: int, units: list[int]) -> list[int]:
    """An offset in steps along each dimension."""
    digits = []
    for unit in units:
        digit, offset = divmod(offset, unit)
        digits.append(digit)
    return digits
