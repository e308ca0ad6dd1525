"""Values that follow from where an element is: nothing is read for them.

They are made on the host also for accelerators, to which they go as what is read does.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mergeengine.execution.views import index_of, tiles
from mergeengine.lazy.algebra import Box
from mergeengine.lazy.nodes import Node

_PATCH = 1 << 14  # elements at a time: positions take eight bytes and are there several times


def fill(
    out: Tensor, node: Node, shape: tuple[int, ...], box: Box, inputs: Sequence[float]
) -> None:
    """Fill ``out``, of the sizes of ``box``, with that part of a generated node.

    The node is seen with ``shape``; ``inputs`` are the values of its inputs.
    """
    for tile in tiles(tuple(out.shape), _PATCH):
        part = tuple((low + a, low + b) for (low, _), (a, b) in zip(box, tile, strict=True))
        positions = _positions(shape, part)
        if node.op == "random":
            values = uniform(node.attributes[0], positions)
        elif node.op == "upto":
            values = positions <= inputs[0]
        else:
            values = _in_ranges(node.attributes, positions)
        out[index_of(tile)].copy_(values)


def uniform(key: int, positions: Tensor) -> Tensor:
    """float32 numbers k · 2**-24 in [0, 1) for flat positions (int64), whatever the device.

    SplitMix64 (Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators",
    OOPSLA) jumped to any place of its sequence: the state is key + (position + 1) · gamma. Integers
    wrap around at 64 bits; the first 24 bits are the number.
    """
    state = (positions + 1).mul_(_signed(0x9E3779B97F4A7C15)).add_(_signed(key))
    state = _xor_shift(state, 30).mul_(_signed(0xBF58476D1CE4E5B9))
    state = _xor_shift(state, 27).mul_(_signed(0x94D049BB133111EB))
    return _shifted(_xor_shift(state, 31), 40).to(torch.float32).mul_(2.0**-24)


def _xor_shift(values: Tensor, bits: int) -> Tensor:
    return values ^ _shifted(values, bits)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """To the right, zeros coming in."""
    return (values >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits


def _positions(shape: tuple[int, ...], box: Box) -> Tensor:
    """The flat positions of a box's elements in a tensor of ``shape`` (int64)."""
    positions = torch.zeros((), dtype=torch.int64)
    stride = 1
    for dimension in range(len(shape) - 1, -1, -1):
        low, high = box[dimension]
        steps = torch.arange(low, high, dtype=torch.int64) * stride
        positions = steps.view(-1, *(1,) * positions.ndim) + positions
        stride *= shape[dimension]
    return positions


def _in_ranges(ranges: Sequence[tuple[int, int]], positions: Tensor) -> Tensor:
    """Whether each position is in one of the ranges, which are in order and apart."""
    firsts = torch.tensor([first for first, _ in ranges], dtype=torch.int64)
    lasts = torch.tensor([last for _, last in ranges], dtype=torch.int64)
    # The range that might hold a position is the last that begins before or at it.
    found = torch.searchsorted(firsts, positions, right=True) - 1
    return (found >= 0) & (positions <= lasts[found.clamp_(min=0)])
