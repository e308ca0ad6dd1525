"""One block of one step: views are read, tiles computed, the result left in the arena."""

from collections.abc import Callable, Iterator
from itertools import product
from math import prod

import torch
from torch import Tensor

from mergeengine.compiler.program import Load, Operand, Program, Scalar, tile_shape
from mergeengine.compiler.schedule import SCRATCH, TILE, Step
from mergeengine.execution.arena import Arena
from mergeengine.execution.inputs import (
    Inputs,
    Outcomes,
    Region,
    index_of,
    regions,
    restricted,
    sizes_of,
)
from mergeengine.execution.kernels import OPERATIONS, round_into, torch_dtype
from mergeengine.execution.reader import Reader
from mergeengine.lazy.algebra import Box, broadcast
from mergeengine.lazy.dtypes import DType
from mergeengine.lazy.nodes import Node


class BlockRunner:
    """What one worker of the CPU computes with: its memory, and where inputs come from."""

    def __init__(self, arena: Arena, reader: Reader, outcomes: Outcomes) -> None:
        self._arena = arena
        self._inputs = Inputs(reader, outcomes)
        self.not_finite = False  # whether the last block may hold infinities or NaN

    def run(self, step: Step, start: int, stop: int) -> Tensor:
        """Elements ``start:stop`` (flat) of the step's operand, in the step's result dtype.

        The tensor lies in the arena, is flat, and is valid until the next block.
        """
        self.not_finite = False
        self._arena.rewind()
        scratch = self._arena.take(SCRATCH, torch.uint8)
        result = self._arena.take(stop - start, torch_dtype(step.result))
        mark = self._arena.mark()
        for region in regions(step, start, stop):
            self._arena.rewind(mark)
            self._region(step, region, region.window(result), scratch)
        return result

    def number(self, node: Node, compute: DType) -> float:
        """The value of a number, in float64."""
        return self._inputs.number(node, compute)

    def _region(self, step: Step, region: Region, out: Tensor, scratch: Tensor) -> None:
        """Compute one region into ``out``, its window of the result."""
        program = region.program
        loaded = [
            self._inputs.load(load, step.compute, region, self._arena, scratch)
            for load in program.loads
        ]
        if program.copy is not None and loaded[0].dtype == out.dtype:
            out.copy_(loaded[0])
            return
        sizes = sizes_of(region.box)
        limit = min(TILE, max(1, prod(sizes)))
        registers = [
            self._arena.take(limit, torch_dtype(step.compute)) for _ in range(program.registers)
        ]

        def number(node: Node) -> Tensor:
            return self._inputs.scalar(node, step.compute)

        for tile in _tiles(sizes, limit):
            value = evaluate(program, tile, loaded, registers, number)
            window = out[index_of(tile)]
            if value.shape == ():
                window.fill_(value)
            else:
                self.not_finite |= round_into(window, value)


def evaluate(
    program: Program,
    tile: Box,
    loaded: list[Tensor],
    registers: list[Tensor],
    number: Callable[[Node], Tensor],
) -> Tensor:
    """Run a program's instructions over a tile of its box: a register's part, or a number.

    ``loaded`` are the loads' values in the box, as stored; ``registers`` are flat, in the dtype of
    the arithmetic and large enough for the tile; ``number`` gives values of shape () in that dtype.
    """
    values: dict[int, Tensor] = {}

    def operand(of: Operand) -> Tensor:
        return number(of.node) if isinstance(of, Scalar) else values[of.index]

    raws = iter(loaded)
    for instruction in program.instructions:
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
    return operand(program.result)


def _tiles(sizes: tuple[int, ...], elements: int) -> Iterator[Box]:
    tile = tile_shape(sizes, elements)
    ranges = (range(0, size, step) for size, step in zip(sizes, tile, strict=True))
    for corner in product(*ranges):
        yield tuple(
            (low, min(low + step, size))
            for low, step, size in zip(corner, tile, sizes, strict=True)
        )
