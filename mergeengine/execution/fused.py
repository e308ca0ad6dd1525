"""Whole blocks by the compiled loop: which steps it can take, and what it is given."""

import os
from contextlib import ExitStack
from ctypes import c_double, c_float, c_void_p
from dataclasses import dataclass
from itertools import count

import torch

from mergeengine.compiler.program import Load, Operand, Program, Register
from mergeengine.compiler.schedule import Step
from mergeengine.errors import MergeEngineError
from mergeengine.execution import native
from mergeengine.execution.arena import Arena
from mergeengine.execution.blocks import BlockRunner
from mergeengine.execution.kernels import torch_dtype
from mergeengine.execution.reader import Reader
from mergeengine.execution.views import flat_start
from mergeengine.lazy.stored import Stored

_CACHE = 1 << 20  # bytes of all inputs' pieces: about a second-level cache
_LEAST_PIECE, _MOST_PIECE = 1 << 14, 1 << 17


@dataclass(frozen=True, slots=True)
class FileRange:
    """Where a block goes: an open file and the byte offset in it; a descriptor of -1 is nowhere."""

    descriptor: int
    offset: int


NOWHERE = FileRange(-1, 0)


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A step as the loop takes it. Each source is a stored tensor, from a flat element on."""

    program: native.Program
    sources: tuple[tuple[Stored, int], ...]
    piece: int


class FusedRunner:
    """Runs blocks of output passes whose one piece is flat, in the memory of one worker."""

    def __init__(
        self, library: native.Library, arena: Arena, reader: Reader, runner: BlockRunner
    ) -> None:
        self._library = library
        self._arena = arena
        self._reader = reader
        self._runner = runner  # knows the values of numbers
        self._step: Step | None = None
        self._compiled: _Compiled | None = None
        self.not_finite = False  # whether the last block holds infinities or NaN that it computed

    def takes(self, step: Step) -> bool:
        """Whether the loop can run this step; all values of earlier passes must be known."""
        if self._step is not step:
            self._step, self._compiled = step, self._compile(step)
        return self._compiled is not None

    def run(self, start: int, stop: int, place: FileRange = NOWHERE) -> torch.Tensor:
        """Elements ``start:stop`` of the step that ``takes`` was last asked for, written to
        ``place``. What is returned lies in host memory and is valid until the next block.

        Raises CheckpointError for what cannot be read, and OSError for what cannot be written.
        """
        assert self._step is not None
        assert self._compiled is not None
        compiled, result, elements = self._compiled, self._step.result, stop - start
        self._arena.rewind()
        target = self._arena.take(elements, torch_dtype(result))
        sources = compiled.sources
        places = (native.Place * len(sources))()
        buffers = (c_void_p * len(sources))()
        with ExitStack() as stack:
            for number, (stored, first) in enumerate(sources):
                dtype = torch_dtype(stored.dtype)
                size = stored.dtype.itemsize
                buffers[number] = self._arena.take(min(compiled.piece, elements), dtype).data_ptr()
                places[number] = native.Place(
                    stack.enter_context(self._reader.opened(stored.file)),
                    0,
                    stored.offset + (first + start) * size,
                )
            registers = self._arena.take(
                (compiled.program.registers + 1) * native.VECTOR, torch.float64
            )
            outcome = self._library.run(
                compiled.program,
                places,
                native.Place(place.descriptor, 0, place.offset),
                buffers,
                target.data_ptr(),
                registers.data_ptr(),
                elements,
                compiled.piece,
            )
        if outcome.kind == native.CANNOT_WRITE:
            raise OSError(outcome.error, os.strerror(outcome.error))
        if outcome.kind != native.DONE:
            raise self._unreadable(outcome, sources[outcome.which][0])
        self.not_finite = bool(outcome.strange)
        return target

    def _unreadable(self, outcome: native.Outcome, stored: Stored) -> MergeEngineError:
        if outcome.kind == native.ENDS_EARLY:
            return self._reader.ended(stored.file, outcome.offset)
        return self._reader.unreadable(stored.file, os.strerror(outcome.error))

    def _compile(self, step: Step) -> _Compiled | None:
        if len(step.pieces) != 1 or not step.pieces[0].program.flat:
            return None
        program = step.pieces[0].program
        held = [flat_start(load.view) for load in program.loads]
        if not held or any(node.op != "stored" for node, _ in held):
            return None
        sources = tuple((node.stored, first) for node, first in held)
        sizes = [stored.dtype.itemsize for stored, _ in sources]
        numbers: list[float] = []
        if program.copy is not None and sources[0][0].dtype == step.result:
            instructions: list[native.Instruction] | None = []
            dtypes: list[int | None] = [native.RAW]
            result = native.Result(native.RAW, step.result.itemsize, -1, -1, 0)
        else:
            instructions = self._instructions(program, step, numbers)
            dtypes = [native.DTYPES.get(stored.dtype.name) for stored, _ in sources]
            code, register = native.DTYPES.get(step.result.name), program.result
            if instructions is None or code is None or not isinstance(register, Register):
                return None
            last = len(instructions) - 1
            result = native.Result(code, step.result.itemsize, register.index, last, -1)
        if instructions is None or None in dtypes:
            return None
        pairs = (native.Source(dtype, size) for dtype, size in zip(dtypes, sizes, strict=True))
        compiled = native.Program(
            compute=native.DTYPES[step.compute.name],
            count=len(instructions),
            registers=program.registers,
            source_count=len(sources),
            results=1,
            instructions=(native.Instruction * len(instructions))(*instructions),
            sources=(native.Source * len(sources))(*pairs),
            outputs=(native.Result * 1)(result),
            numbers=(c_double * len(numbers))(*numbers),
            rounded=(c_float * len(numbers))(*numbers),
        )
        piece = 1 << (_CACHE // sum(sizes)).bit_length() - 1
        return _Compiled(compiled, sources, max(_LEAST_PIECE, min(_MOST_PIECE, piece)))

    def _instructions(
        self, program: Program, step: Step, numbers: list[float]
    ) -> list[native.Instruction] | None:
        """The loop's words for a program, whose ``numbers`` are gathered; None: it lacks one."""

        def operand(of: Operand) -> int:
            """A register's index, or ~k for the number k."""
            if isinstance(of, Register):
                return of.index
            numbers.append(self._runner.number(of.node, step.compute))
            return ~(len(numbers) - 1)

        words = []
        sources = count()
        for each in program.instructions:
            if isinstance(each, Load):
                code, operands = native.LOAD, [next(sources), 0, 0]
            elif each.op in native.OPERATIONS:
                code = native.OPERATIONS[each.op]
                operands = [operand(of) for of in each.operands]
                operands += operands[:1] * (3 - len(operands))  # what it does not use
            else:
                return None
            words.append(native.Instruction(code, each.register.index, *operands))
        return words
