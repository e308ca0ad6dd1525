"""One block of one step: views are read, tiles computed, the results left in the arena."""

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from mergeengine.compiler.program import Load, Operand, Program, Scalar
from mergeengine.compiler.sample import sample_step
from mergeengine.compiler.schedule import SCRATCH, TILE, Step, TensorSchedule
from mergeengine.execution.arena import Arena
from mergeengine.execution.inputs import (
    Inputs,
    Region,
    regions,
    restricted,
)
from mergeengine.execution.kernels import OPERATIONS, round_into, torch_dtype
from mergeengine.execution.precision import Sums
from mergeengine.execution.reader import Reader
from mergeengine.execution.sampling import sums_of
from mergeengine.execution.views import index_of, sizes_of, tiles
from mergeengine.execution.work import Outcomes
from mergeengine.lazy.algebra import Box, broadcast
from mergeengine.lazy.dtypes import DType
from mergeengine.lazy.nodes import Node
from mergeengine.lazy.partition import CHUNK, SAMPLE


class BlockRunner:
    """What one worker of the CPU computes with: its memory, and where inputs come from."""

    def __init__(self, arena: Arena, reader: Reader, outcomes: Outcomes) -> None:
        self._arena = arena
        self._scratch = arena.take(SCRATCH, torch.uint8)
        self._begin = self._end = arena.mark()
        self._inputs = Inputs(reader, outcomes)
        self._sample: tuple[TensorSchedule, Step] | None = None
        self.not_finite: set[int] = set()  # results of the last block with infinities or NaN

    def run(self, step: Step, start: int, stop: int) -> list[Tensor]:
        """Elements ``start:stop`` (flat) of each result of the step, in its result dtype.

        The tensors lie in the arena, are flat, and are valid until the next block.
        """
        results, self._end = self._results(step, start, stop, self._begin)
        return results

    def measure(
        self, tensor: TensorSchedule, start: int, stop: int, results: Sequence[Tensor]
    ) -> list[list[Sums]]:
        """What rounding lost of elements ``start:stop`` (flat, whole chunks) of each of a tensor's
        ``results``, chunk by chunk; nothing where none of them is a sum. ``results`` stay valid.
        """
        if not any(tensor.write.is_sum(number) for number in range(tensor.write.results)):
            return []
        if self._sample is None or self._sample[0] is not tensor:
            self._sample = tensor, sample_step(tensor)
        found: list[list[Sums]] = [[] for _ in results]
        strange = self.not_finite
        for first in range(start, stop, CHUNK):
            last = min(first + SAMPLE, stop)
            values, _ = self._results(self._sample[1], first, last, self._end)
            pairs = zip(values[: len(results)], values[len(results) :], strict=True)
            for sums, result, pair in zip(found, results, pairs, strict=True):
                sums.append(sums_of(result[first - start : last - start], *pair))
        self.not_finite = strange
        return found

    def _results(self, step: Step, start: int, stop: int, begin: int) -> tuple[list[Tensor], int]:
        """The results, from mark ``begin`` of the arena on, and the mark behind them."""
        self.not_finite = set()
        self._arena.rewind(begin)
        dtype = torch_dtype(step.result)
        results = [self._arena.take(stop - start, dtype) for _ in range(step.results)]
        mark = self._arena.mark()
        strip = step.strip
        for first in range(start, stop, strip):
            last = min(first + strip, stop)
            parts = [result[first - start : last - start] for result in results]
            for region in regions(step, first, last):
                self._arena.rewind(mark)
                self._region(step, region, [region.window(part) for part in parts])
        return results, mark

    def number(self, node: Node, compute: DType) -> float:
        """The value of a number, in float64."""
        return self._inputs.number(node, compute)

    def _region(self, step: Step, region: Region, outs: list[Tensor]) -> None:
        """Compute one region into ``outs``, its windows of the results."""
        program = region.program
        loaded = [
            self._inputs.load(load, step.compute, region, self._arena, self._scratch)
            for load in program.loads
        ]
        computed = copy_results(program, loaded, outs)
        if not computed:
            return
        sizes = sizes_of(region.box)
        limit = min(TILE, max(1, prod(sizes)))
        registers = [
            self._arena.take(limit, torch_dtype(step.compute)) for _ in range(program.registers)
        ]

        def number(node: Node) -> Tensor:
            return self._inputs.scalar(node, step.compute)

        for tile in tiles(sizes, limit):
            windows = [out[index_of(tile)] for out in outs]

            def leave(result: int, value: Tensor, windows: list[Tensor] = windows) -> None:
                if value.shape == ():
                    windows[result].fill_(value)
                elif round_into(windows[result], value):
                    self.not_finite.add(result)

            evaluate(program, tile, loaded, registers, number, computed, leave)


Computed = dict[int, list[int]]
"""Instruction (-1: none) -> the results that are there after it."""


def copy_results(program: Program, loaded: list[Tensor], outs: list[Tensor]) -> Computed:
    """Copy the results that are inputs as they are; what is left are those to be computed."""
    computed: Computed = {}
    for number, (result, out) in enumerate(zip(program.results, outs, strict=True)):
        if result.copy is not None and loaded[result.copy].dtype == out.dtype:
            out.copy_(loaded[result.copy])
        else:
            computed.setdefault(result.after, []).append(number)
    return computed


def evaluate(
    program: Program,
    tile: Box,
    loaded: list[Tensor],
    registers: list[Tensor],
    number: Callable[[Node], Tensor],
    computed: Computed,
    leave: Callable[[int, Tensor], None],
) -> None:
    """Run a program's instructions over a tile of its box.

    ``loaded`` are the loads' values in the box, as stored; ``registers`` are flat, in the dtype of
    the arithmetic and large enough for the tile; ``number`` gives values of shape () in that dtype.
    ``leave`` is called with each computed result, a part of a register or a number, as soon as it
    is there.
    """
    values: dict[int, Tensor] = {}

    def operand(of: Operand) -> Tensor:
        return number(of.node) if isinstance(of, Scalar) else values[of.index]

    def leave_after(position: int) -> None:
        for result in computed.get(position, ()):
            leave(result, operand(program.results[result].value))

    leave_after(-1)
    raws = iter(loaded)
    for position, instruction in enumerate(program.instructions):
        index = instruction.register.index
        if isinstance(instruction, Load):
            raw = next(raws)
            part = raw[index_of(restricted(tile, tuple(raw.shape)))]
            place = registers[index][: part.numel()].view(part.shape)
            values[index] = place.copy_(part)
        else:
            operands = [operand(o) for o in instruction.operands]
            shape = broadcast([tuple(o.shape) for o in operands])
            place = registers[index][: prod(shape)].view(shape)
            values[index] = OPERATIONS[instruction.op](*operands, out=place)
        leave_after(position)
