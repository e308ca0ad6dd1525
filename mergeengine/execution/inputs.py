"""What blocks are computed from: stored tensors, what earlier passes left, and numbers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from mergeengine.compiler.program import Load, Program, arithmetic_of, flat_start
from mergeengine.compiler.schedule import Step
from mergeengine.execution.arena import Arena
from mergeengine.execution.generated import fill
from mergeengine.execution.kernels import OPERATIONS, torch_dtype
from mergeengine.execution.products import multiply
from mergeengine.execution.reader import Reader
from mergeengine.execution.views import (
    MANY,
    Resolved,
    gather_rows,
    index_of,
    read_box,
    resolve,
    sizes_of,
)
from mergeengine.execution.work import Outcomes
from mergeengine.lazy.algebra import Box
from mergeengine.lazy.dtypes import DType
from mergeengine.lazy.nodes import GENERATED, Node
from mergeengine.lazy.partition import boxes


@dataclass(frozen=True, slots=True)
class Region:
    """A box of one piece, computed by itself, and where it goes in a block's flat result.

    ``flat``: the box is a flat range. Otherwise the block has a part of shape ``sizes`` that begins
    at flat element ``start``, and ``index`` is the region in that.
    """

    program: Program
    box: Box
    flat: bool
    start: int
    sizes: tuple[int, ...]
    index: tuple[slice, ...]

    def window(self, result: Tensor) -> Tensor:
        """The region's part of a block's flat result."""
        part = result[self.start : self.start + prod(self.sizes)]
        return part.view(self.sizes)[self.index]


def regions(step: Step, start: int, stop: int) -> Iterator[Region]:
    """What elements ``start:stop`` (flat) of a step's operand fall into; together they are all."""
    if len(step.pieces) == 1 and step.pieces[0].program.flat:
        everything = (slice(None),)
        program = step.pieces[0].program
        yield Region(program, ((start, stop),), True, 0, (stop - start,), everything)
        return
    done = 0
    for box in boxes(step.operand.shape, start, stop):
        sizes = sizes_of(box)
        for piece in step.pieces:
            common = _intersection(box, piece.box)
            if common is not None:
                index = index_of(_relative(common, box))
                inside = _relative(common, piece.box)
                yield Region(piece.program, inside, False, done, sizes, index)
        done += prod(sizes)


Take = Callable[[int, torch.dtype, int | None], Tensor]
"""Memory for elements of a dtype, which are read from a byte of a file: ``Arena.take``."""


def _temporary(elements: int, dtype: torch.dtype, beside: int | None) -> Tensor:
    return torch.empty(elements, dtype=dtype)


class Inputs:
    """Loads boxes of views into host memory, and knows numbers; safe from many threads apart from
    ``scalar``, which remembers."""

    def __init__(self, reader: Reader, outcomes: Outcomes) -> None:
        self._reader = reader
        self._outcomes = outcomes
        self._scalars: dict[tuple[Node, str], Tensor] = {}

    def load(
        self, load: Load, compute: DType, region: Region, arena: Arena, scratch: Tensor
    ) -> Tensor:
        """A region of a view, in the dtype it is stored in, in the arena.

        ``scratch`` (flat, uint8) gathers short rows.
        """
        if not region.flat:
            box = restricted(region.box, load.view.shape)
            return self._box(load.view, box, compute, arena.take, scratch)
        resolved, shape = _flattened(load.view, region.box)
        held, beside = resolved.holder, 0
        if held.op == "stored":
            beside = region.box[0][0] * held.stored.dtype.itemsize
        return self._filled(resolved, shape, compute, arena.take, scratch, beside)

    def _box(self, view: Node, box: Box, compute: DType, take: Take, scratch: Tensor) -> Tensor:
        """A box of a view, as stored; a product in the dtype of the arithmetic."""
        if view.op == "repeat":
            return self._repeated(view, box, compute, take, scratch)
        if view.op == "product":
            out = take(prod(sizes_of(box)), torch_dtype(compute), None).view(sizes_of(box))

            def factor(which: int, part: Box) -> Tensor:
                values = self._box(view.inputs[which], part, compute, _temporary, scratch)
                return values.to(torch_dtype(compute))

            multiply(out, view, box, factor)
            return out
        resolved = resolve(view, box)
        return self._filled(resolved, resolved.holder.shape, compute, take, scratch)

    def _repeated(
        self, view: Node, box: Box, compute: DType, take: Take, scratch: Tensor
    ) -> Tensor:
        """Elements are repeated where they were read, which are few."""
        inner, offsets = [], []
        for (low, high), (factor, first) in zip(box, view.attributes, strict=True):
            start = (low + first) // factor
            inner.append((start, -(-(high + first) // factor)))
            offsets.append(low + first - start * factor)
        values = self._box(view.inputs[0], tuple(inner), compute, _temporary, scratch)
        out = take(prod(sizes_of(box)), values.dtype, None).view(sizes_of(box))
        for dimension, size in enumerate(out.shape):
            factor = view.attributes[dimension][0]
            if factor > 1:
                places = (torch.arange(size) + offsets[dimension]) // factor
                if values.dtype.itemsize == 1:  # index_select lacks 8-bit floats
                    chosen = values.view(torch.uint8).index_select(dimension, places)
                    values = chosen.view(values.dtype)
                else:
                    values = values.index_select(dimension, places)
        return out.copy_(values)

    def _filled(
        self,
        resolved: Resolved,
        shape: tuple[int, ...],
        compute: DType,
        take: Take,
        scratch: Tensor,
        beside: int = 0,
    ) -> Tensor:
        """A box of what holds data, seen with ``shape``, permuted as its view is."""
        held = resolved.holder
        elements = prod(resolved.sizes)
        if held.op in GENERATED:
            place = take(elements, torch_dtype(GENERATED[held.op]), None).view(resolved.sizes)
            inputs = [self.number(node, compute) for node in held.inputs]
            for destination, source in resolved.parts:
                window = place[index_of(destination)]
                if source is None:
                    window.zero_()
                else:
                    fill(window, held, shape, source, inputs)
            return place.permute(resolved.order)
        if held.op != "stored":
            outcome = self._outcomes[held, arithmetic_of(held, compute).name].view(shape)
            place = take(elements, outcome.dtype, None).view(resolved.sizes)
            for destination, source in resolved.parts:
                window = place[index_of(destination)]
                if source is None:
                    window.zero_()
                else:
                    window.copy_(outcome[index_of(source)])
            return place.permute(resolved.order)
        stored = held.stored
        dtype = torch_dtype(stored.dtype)
        place = take(elements, dtype, stored.offset + beside).view(resolved.sizes)
        gathered = len(resolved.parts) > MANY and gather_rows(
            self._reader, stored, shape, resolved.parts, place
        )
        for destination, source in () if gathered else resolved.parts:
            window = place[index_of(destination)]
            if source is None:
                window.zero_()
            else:
                # One element more dimension: bytes, whatever the dtype and the rank.
                as_bytes = window.unsqueeze(-1).view(torch.uint8)
                read_box(self._reader, stored, shape, source, as_bytes, scratch)
        return place.permute(resolved.order)

    def number(self, node: Node, compute: DType) -> float:
        """The value of a number, in float64."""
        return float(self._scalar64(node, compute))

    def scalar(self, node: Node, compute: DType) -> Tensor:
        """A number as the arithmetic sees it (shape ()): computed in float64, rounded to its
        dtype."""
        key = node, compute.name
        if key not in self._scalars:
            self._scalars[key] = self._scalar64(node, compute).to(torch_dtype(compute))
        return self._scalars[key]

    def _scalar64(self, node: Node, compute: DType) -> Tensor:
        if node.op == "constant":
            return torch.tensor(node.value, dtype=torch.float64)
        if node.kind == "elementwise":
            operands = [self._scalar64(child, compute) for child in node.inputs]
            return OPERATIONS[node.op](*operands, out=torch.empty((), dtype=torch.float64))
        return self._outcomes[node, arithmetic_of(node, compute).name].to(torch.float64)


def restricted(box: Box, shape: tuple[int, ...]) -> Box:
    """What a broadcast operand of ``shape`` contributes to ``box``."""
    if shape == ():
        return ()
    fitted = zip(box, shape, strict=True)
    return tuple((0, 1) if n == 1 else (low, high) for (low, high), n in fitted)


def _flattened(view: Node, box: Box) -> tuple[Resolved, tuple[int, ...]]:
    """A flat range of a contiguous view, as a box of its holder flattened."""
    held, first = flat_start(view)
    start, stop = box[0]
    length = stop - start
    start += first
    part = (((0, length),), ((start, start + length),))
    return Resolved(held, (length,), (0,), (part,)), (held.numel,)


def _relative(box: Box, origin: Box) -> Box:
    return tuple((a - o, b - o) for (a, b), (o, _) in zip(box, origin, strict=True))


def _intersection(first: Box, second: Box) -> Box | None:
    common = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(first, second, strict=True))
    return common if all(low < high for low, high in common) else None
