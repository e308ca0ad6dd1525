"""One block of one step: views are read, tiles computed, the results left in the arena."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor

from mergeengine.compiler.program import Load, Operand, Program, Scalar, tile_shape
from mergeengine.compiler.schedule import SCRATCH, TILE, Step, arithmetic_of
from mergeengine.execution.arena import Arena
from mergeengine.execution.kernels import OPERATIONS, round_into, torch_dtype
from mergeengine.execution.reader import Reader
from mergeengine.execution.views import Resolved, flat_start, read_box, resolve
from mergeengine.lazy.algebra import Box, broadcast
from mergeengine.lazy.dtypes import DType
from mergeengine.lazy.nodes import Node
from mergeengine.lazy.partition import boxes

Outcomes = Mapping[tuple[Node, str], Tensor]
"""(reduction or whole node, name of the arithmetic's dtype) -> its value, on the CPU."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """Memory on a device, and how to wait until the work issued to it is done."""

    arena: Arena
    wait: Callable[[], None]


class BlockRunner:
    """What one worker computes with: its memory, the reader, and what earlier passes left.

    With an ``accelerator`` the inputs' own bytes are copied to the device, converted and computed
    there, and only the output's bytes come back; ``arena`` is then pinned host memory.
    """

    def __init__(
        self,
        arena: Arena,
        reader: Reader,
        outcomes: Outcomes,
        accelerator: Accelerator | None = None,
    ) -> None:
        self._arena = arena
        self._accelerator = accelerator
        self._compute_arena = accelerator.arena if accelerator else arena
        self._reader = reader
        self._outcomes = outcomes
        self._scalars: dict[tuple[Node, str], Tensor] = {}
        self._scratch = torch.empty(0)
        self.not_finite: set[int] = set()  # results of the last block with infinities or NaN

    def run(self, step: Step, start: int, stop: int) -> list[Tensor]:
        """Elements ``start:stop`` (flat) of each result of the step, in its result dtype.

        The tensors lie in host memory, are flat, and are valid until the next block.
        """
        self.not_finite = set()
        self._arena.rewind()
        self._scratch = self._arena.take(SCRATCH, torch.uint8)
        hosts = _taken(self._arena, step, stop - start)
        results = hosts
        if self._accelerator:
            self._compute_arena.rewind()
            results = _taken(self._compute_arena, step, stop - start)
        marks = self._arena.mark(), self._compute_arena.mark()
        if len(step.pieces) == 1 and step.pieces[0].program.flat:
            self._region(step, step.pieces[0].program, ((start, stop),), results, flat=True)
        else:
            done = 0
            for box in boxes(step.operand.shape, start, stop):
                sizes = _sizes(box)
                targets = [r[done : done + prod(sizes)].view(sizes) for r in results]
                done += prod(sizes)
                for piece in step.pieces:
                    common = _intersection(box, piece.box)
                    if common is not None:
                        self._arena.rewind(marks[0])
                        self._compute_arena.rewind(marks[1])
                        windows = [t[_index(_relative(common, box))] for t in targets]
                        inside = _relative(common, piece.box)
                        self._region(step, piece.program, inside, windows, flat=False)
        if self._accelerator:
            for host, result in zip(hosts, results, strict=True):
                host.copy_(result, non_blocking=True)
            self._accelerator.wait()
            self.not_finite = {k for k in self.not_finite if not _finite(hosts[k])}
        return hosts

    def _region(
        self, step: Step, program: Program, box: Box, outs: list[Tensor], *, flat: bool
    ) -> None:
        """Compute one box of one piece into ``outs``, windows of the results."""
        loaded = [self._load(load, step.compute, box, flat=flat) for load in program.loads]
        computed: dict[int, list[int]] = {}  # instruction -> results that it leaves
        for number, (result, out) in enumerate(zip(program.results, outs, strict=True)):
            if result.copy is not None and loaded[result.copy].dtype == out.dtype:
                out.copy_(loaded[result.copy], non_blocking=True)
            else:
                computed.setdefault(result.after, []).append(number)
        if not computed:
            return
        sizes = _sizes(box)
        elements = max(1, prod(sizes))
        # A device has no small cache to stay in, and few large kernels suit it better.
        limit = elements if self._accelerator else min(TILE, elements)
        registers = [
            self._compute_arena.take(limit, torch_dtype(step.compute))
            for _ in range(program.registers)
        ]
        for tile in _tiles(sizes, limit):
            windows = [out[_index(tile)] for out in outs]
            self._tile(step.compute, program, tile, loaded, registers, computed, windows)

    def _tile(
        self,
        compute: DType,
        program: Program,
        tile: Box,
        loaded: list[Tensor],
        registers: list[Tensor],
        computed: dict[int, list[int]],
        windows: list[Tensor],
    ) -> None:
        values: dict[int, Tensor] = {}

        def operand(of: Operand) -> Tensor:
            return self._scalar(of.node, compute) if isinstance(of, Scalar) else values[of.index]

        def leave(after: int) -> None:
            for number in computed.get(after, ()):
                value, window = operand(program.results[number].value), windows[number]
                if value.shape == ():
                    window.fill_(value)
                elif round_into(window, value):
                    self.not_finite.add(number)

        leave(-1)
        raws = iter(loaded)
        for position, instruction in enumerate(program.instructions):
            index = instruction.register.index
            if isinstance(instruction, Load):
                raw = next(raws)
                part = raw[_index(_restricted(tile, tuple(raw.shape)))]
                place = registers[index][: part.numel()].view(part.shape)
                values[index] = place.copy_(part)
            else:
                operands = [operand(o) for o in instruction.operands]
                shape = broadcast([tuple(o.shape) for o in operands])
                place = registers[index][: prod(shape)].view(shape)
                values[index] = OPERATIONS[instruction.op](*operands, out=place)
            leave(position)

    def _load(self, load: Load, compute: DType, box: Box, *, flat: bool) -> Tensor:
        """A box of a view, in the dtype it is stored in, where the arithmetic happens."""
        if flat:
            resolved, shape = _flattened(load.view, box)
        else:
            resolved = resolve(load.view, _restricted(box, load.view.shape))
            shape = resolved.holder.shape
        held = resolved.holder
        elements = prod(resolved.sizes)
        if held.op != "stored":
            outcome = self._outcomes[held, arithmetic_of(held, compute).name].view(shape)
            place = self._compute_arena.take(elements, outcome.dtype).view(resolved.sizes)
            for destination, source in resolved.parts:
                window = place[_index(destination)]
                if source is None:
                    window.zero_()
                else:
                    window.copy_(outcome[_index(source)])
            return place.permute(resolved.order)
        stored = held.stored
        beside = stored.offset + (box[0][0] * stored.dtype.itemsize if flat else 0)
        place = self._arena.take(elements, torch_dtype(stored.dtype), beside).view(resolved.sizes)
        for destination, source in resolved.parts:
            window = place[_index(destination)]
            if source is None:
                window.zero_()
            else:
                # One element more dimension: bytes, whatever the dtype and the rank.
                as_bytes = window.unsqueeze(-1).view(torch.uint8)
                read_box(self._reader, stored, shape, source, as_bytes, self._scratch)
        if self._accelerator:
            there = self._compute_arena.take(elements, place.dtype).view(resolved.sizes)
            place = there.copy_(place, non_blocking=True)
        return place.permute(resolved.order)

    def number(self, node: Node, compute: DType) -> float:
        """The value of a number, in float64."""
        return float(self._scalar64(node, compute))

    def _scalar(self, node: Node, compute: DType) -> Tensor:
        """A number as the arithmetic sees it: computed in float64, rounded to its dtype."""
        key = node, compute.name
        if key not in self._scalars:
            value = self._scalar64(node, compute).to(torch_dtype(compute))
            self._scalars[key] = value.to(self._compute_arena.device)
        return self._scalars[key]

    def _scalar64(self, node: Node, compute: DType) -> Tensor:
        if node.op == "constant":
            return torch.tensor(node.value, dtype=torch.float64)
        if node.kind == "elementwise":
            operands = [self._scalar64(child, compute) for child in node.inputs]
            return OPERATIONS[node.op](*operands, out=torch.empty((), dtype=torch.float64))
        return self._outcomes[node, arithmetic_of(node, compute).name].to(torch.float64)


def _taken(arena: Arena, step: Step, elements: int) -> list[Tensor]:
    return [arena.take(elements, torch_dtype(step.result)) for _ in range(step.results)]


def _finite(values: Tensor) -> bool:
    if not values.dtype.is_floating_point or values.itemsize == 1 or not values.numel():
        return True
    return all(bool(torch.isfinite(bound)) for bound in torch.aminmax(values))


def _flattened(view: Node, box: Box) -> tuple[Resolved, tuple[int, ...]]:
    """A flat range of a contiguous view, as a box of its holder flattened."""
    held, first = flat_start(view)
    start, stop = box[0]
    length = stop - start
    start += first
    part = (((0, length),), ((start, start + length),))
    return Resolved(held, (length,), (0,), (part,)), (held.numel,)


def _sizes(box: Box) -> tuple[int, ...]:
    return tuple(high - low for low, high in box)


def _index(box: Box) -> tuple[slice, ...]:
    return tuple(slice(low, high) for low, high in box)


def _relative(box: Box, origin: Box) -> Box:
    return tuple((a - o, b - o) for (a, b), (o, _) in zip(box, origin, strict=True))


def _intersection(first: Box, second: Box) -> Box | None:
    common = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(first, second, strict=True))
    return common if all(low < high for low, high in common) else None


def _restricted(box: Box, shape: tuple[int, ...]) -> Box:
    """What a broadcast operand of ``shape`` contributes to ``box``."""
    if shape == ():
        return ()
    fitted = zip(box, shape, strict=True)
    return tuple((0, 1) if n == 1 else (low, high) for (low, high), n in fitted)


def _tiles(sizes: tuple[int, ...], elements: int) -> Iterator[Box]:
    tile = tile_shape(sizes, elements)
    ranges = (range(0, size, step) for size, step in zip(sizes, tile, strict=True))
    for corner in product(*ranges):
        yield tuple(
            (low, min(low + step, size))
            for low, step, size in zip(corner, tile, sizes, strict=True)
        )
