"""Boxes of views: which boxes of what holds the data they are, and reading those from a file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor

from mergeengine.compiler.program import tile_shape
from mergeengine.execution.arena import memory_of
from mergeengine.execution.reader import Reader
from mergeengine.lazy.algebra import Box
from mergeengine.lazy.nodes import Node
from mergeengine.lazy.stored import Stored

DIRECT_RUN = 64 << 10  # contiguous bytes from which a read of its own is worth it
MANY = 8  # parts from which whole rows are gathered


@dataclass(frozen=True, slots=True)
class Resolved:
    """A box of a view, in the dimensions of the node that holds the data.

    ``parts`` are (destination box, source box); a source of None is zeros. ``order`` permutes the
    assembled box, of shape ``sizes``, into the view's own dimensions.
    """

    holder: Node
    sizes: tuple[int, ...]
    order: tuple[int, ...]
    parts: tuple[tuple[Box, Box | None], ...]


def sizes_of(box: Box) -> tuple[int, ...]:
    return tuple(high - low for low, high in box)


def index_of(box: Box) -> tuple[slice, ...]:
    return tuple(slice(low, high) for low, high in box)


def tiles(sizes: tuple[int, ...], elements: int) -> Iterator[Box]:
    """A box of these sizes cut into boxes of so many elements at most."""
    tile = tile_shape(sizes, elements)
    ranges = (range(0, size, step) for size, step in zip(sizes, tile, strict=True))
    for corner in product(*ranges):
        yield tuple(
            (low, min(low + step, size))
            for low, step, size in zip(corner, tile, sizes, strict=True)
        )


_Run = tuple[int, int, int | None]  # destination start and stop, source start


def resolve(view: Node, box: Box) -> Resolved:
    """Follow a view inwards: permute, then takes, then a slice (the graph's normal form).

    What is repeated is not followed here: a box of it is not made of boxes.
    """
    order = tuple(range(len(box)))
    node = view
    if node.op == "permute":
        order = node.attributes
        box = tuple(box[order.index(d)] for d in range(len(order)))
        node = node.inputs[0]
    sizes = tuple(high - low for low, high in box)
    runs: list[list[_Run]] = [[(0, high - low, low)] for low, high in box]
    while node.op in ("take", "slice"):
        if node.op == "take":
            dimension, indices = node.attributes
            runs[dimension] = [r for run in runs[dimension] for r in _taken(run, indices)]
        else:
            for dimension, (low, _) in enumerate(node.attributes[0]):
                runs[dimension] = [
                    (a, b, None if s is None else s + low) for a, b, s in runs[dimension]
                ]
        node = node.inputs[0]
    parts: list[tuple[Box, Box | None]] = []
    for combination in product(*runs):
        destination = tuple((a, b) for a, b, _ in combination)
        if any(source is None for _, _, source in combination):
            parts.append((destination, None))
        else:
            parts.append(
                (destination, tuple((s or 0, (s or 0) + b - a) for a, b, s in combination))
            )
    return Resolved(node, sizes, order, tuple(parts))


def _taken(run: _Run, indices: tuple[int, ...]) -> Iterator[_Run]:
    start, stop, source = run
    if source is None:
        yield run
        return
    position = start
    while position < stop:
        first = indices[source + position - start]
        length = 1
        while position + length < stop and indices[source + position - start + length] == (
            first + length if first >= 0 else -1
        ):
            length += 1
        yield position, position + length, first if first >= 0 else None
        position += length


def gather_rows(
    reader: Reader,
    tensor: Stored,
    shape: tuple[int, ...],
    parts: Sequence[tuple[Box, Box | None]],
    out: Tensor,
) -> bool:
    """Read whole rows of a stored tensor, in the order in which they lie in the file, into ``out``,
    which is contiguous and of the rows' shape; False where the parts are not whole rows."""
    whole = [(0, size) for size in shape[1:]]
    if any(list(box[1:]) != whole for pair in parts for box in pair if box is not None):
        return False
    size = prod(shape[1:]) * tensor.dtype.itemsize
    memory = memory_of(out.view(-1).view(torch.uint8))
    reads = []
    for (place, *_), source in parts:
        if source is None:
            out[place[0] : place[1]].zero_()
        else:
            reads.append((tensor.offset + source[0][0] * size, place[0] * size, place[1] * size))
    reads.sort()
    reader.gather(tensor.file, ((offset, memory[a:b]) for offset, a, b in reads))
    return True


def read_box(
    reader: Reader,
    tensor: Stored,
    shape: tuple[int, ...],
    box: Box,
    out: Tensor,
    scratch: Tensor,
) -> None:
    """Read a box of a stored tensor, seen with ``shape``, into ``out``: (*box's shape, itemsize).

    ``out`` may be a window of something larger. Runs that are long enough are read one by one;
    short ones through ``scratch`` (flat, uint8), many rows with one read.
    """
    itemsize = tensor.dtype.itemsize
    if out.numel() == 0:
        return
    inner = len(shape)
    while inner and box[inner - 1] == (0, shape[inner - 1]):
        inner -= 1
    # Dimensions from `inner` on are whole: a run covers the range in dimension inner - 1 as well.
    outer = max(0, inner - 1)
    strides = [prod(shape[d + 1 :]) * itemsize for d in range(len(shape))]
    base = tensor.offset + sum(low * s for (low, _), s in zip(box, strides, strict=True))
    run = prod(high - low for low, high in box[outer:]) * itemsize
    rows = box[outer - 1][1] - box[outer - 1][0] if outer else 1
    stride = strides[outer - 1] if outer else run
    together = max(1, (scratch.numel() - run) // stride + 1) if run < DIRECT_RUN else 1
    for index in product(*(range(high - low) for low, high in box[: max(0, outer - 1)])):
        start = base + sum(i * s for i, s in zip(index, strides, strict=False))
        window = out[index] if index else out
        for row in range(0, rows, together):
            count = min(together, rows - row)
            target = window[row : row + count] if outer else window
            offset = start + row * stride
            if count == 1 and target.is_contiguous():
                reader.read_into(tensor.file, offset, memory_of(target))
            else:
                _read_rows(reader, tensor, offset, run, stride, target, scratch)


def _read_rows(
    reader: Reader,
    tensor: Stored,
    offset: int,
    run: int,
    stride: int,
    target: Tensor,
    scratch: Tensor,
) -> None:
    """Rows of ``run`` bytes, ``stride`` apart, with as few reads as the scratch allows."""
    rows = target.shape[0] if target.numel() > run else 1
    if run <= scratch.numel():
        span = (rows - 1) * stride + run
        reader.read_into(tensor.file, offset, memory_of(scratch[:span]))
        target.copy_(scratch.as_strided((rows, run), (stride, 1)).reshape(target.shape))
        return
    # One long run into a window that is not contiguous: by the window's leading dimension.
    part = target.numel() // target.shape[0]
    for index in range(target.shape[0]):
        _read_rows(reader, tensor, offset + index * part, part, part, target[index], scratch)
