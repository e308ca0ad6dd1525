"""Whole blocks by the compiled loop: which steps it can take, and what it is given."""

import os
from collections.abc import Sequence
from ctypes import Array, c_double, c_float, c_void_p
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from mergeengine.compiler.program import Load, Operand, Program, Register
from mergeengine.compiler.program import Result as ProgramResult
from mergeengine.compiler.schedule import Step
from mergeengine.errors import MergeEngineError
from mergeengine.execution import native
from mergeengine.execution.arena import Arena, memory_of
from mergeengine.execution.blocks import BlockRunner
from mergeengine.execution.kernels import torch_dtype
from mergeengine.execution.reader import Reader
from mergeengine.execution.views import flat_start
from mergeengine.lazy.stored import Stored

_CACHE = 1 << 20  # bytes of all inputs' pieces: about a second-level cache
_LEAST_PIECE, _MOST_PIECE = 1 << 14, 1 << 17

FileRange = tuple[int, int]
"""Where a result goes: an open file and the byte offset in it; a descriptor of -1 is nowhere."""

NOWHERE: FileRange = (-1, 0)


class CannotWriteError(OSError):
    """The system's error, with the number of the result that could not be written."""

    def __init__(self, error: int, result: int) -> None:
        super().__init__(error, os.strerror(error))
        self.result = result


@dataclass(frozen=True, slots=True)
class _Ready:
    """A step as the loop takes it, everything in its place in the worker's memory.

    ``sources`` are stored tensors, from a flat element on; ``begins`` the same in bytes of their
    files. ``results`` have room for the largest block, ``memory`` shows their bytes. A block only
    changes the offsets in ``inputs`` and ``outputs``.
    """

    program: native.Program
    piece: int
    sources: tuple[tuple[Stored, int], ...]
    begins: tuple[tuple[int, int], ...]  # byte, itemsize
    inputs: Array[native.Place]
    outputs: Array[native.Place]
    buffers: Array[c_void_p]
    targets: Array[c_void_p]
    registers: int
    results: tuple[Tensor, ...]
    memory: tuple[memoryview, ...]


class FusedRunner:
    """Runs blocks of output passes whose one piece is flat, in the memory of one worker.

    The files of the step at hand are kept open; ``close`` lets go of them.
    """

    def __init__(
        self, library: native.Library, arena: Arena, reader: Reader, runner: BlockRunner, block: int
    ) -> None:
        self._library = library
        self._arena = arena
        self._reader = reader
        self._runner = runner  # knows the values of numbers
        self._block = block  # elements
        self._step: Step | None = None
        self._ready: _Ready | None = None
        self._outcome = native.Outcome()

    def takes(self, step: Step) -> bool:
        """Whether the loop can run this step; all values of earlier passes must be known."""
        if self._step is not step:
            self.close()
            self._step = step
            self._ready = self._prepare(step)
        return self._ready is not None

    def run(self, start: int, stop: int, places: Sequence[FileRange] = ()) -> list[Tensor]:
        """Elements ``start:stop`` of the step that ``takes`` was last asked for, each result
        written to its place. They lie in host memory and are valid until the next block.

        Raises CheckpointError for what cannot be read, CannotWriteError for what cannot be written.
        """
        assert self._ready is not None
        ready, elements, outcome = self._ready, stop - start, self._outcome
        for place, (first, size) in zip(ready.inputs, ready.begins, strict=True):
            place.offset = first + start * size
        for place, (file, offset) in zip(
            ready.outputs, places or [NOWHERE] * len(ready.results), strict=True
        ):
            place.file, place.offset = file, offset
        self._library.run(
            ready.program,
            ready.inputs,
            ready.outputs,
            ready.buffers,
            ready.targets,
            ready.registers,
            elements,
            ready.piece,
            outcome,
        )
        if outcome.kind == native.CANNOT_WRITE:
            raise CannotWriteError(outcome.error, outcome.which)
        if outcome.kind != native.DONE:
            raise self._unreadable(outcome, ready.sources[outcome.which][0])
        return [result[:elements] for result in ready.results]

    def written(self, elements: int) -> list[memoryview]:
        """The bytes of the last block's results."""
        assert self._ready is not None
        return [
            memory[: elements * result.itemsize]
            for memory, result in zip(self._ready.memory, self._ready.results, strict=True)
        ]

    @property
    def not_finite(self) -> set[int]:
        """The last block's results that hold infinities or NaN that it computed."""
        strange: int = self._outcome.strange
        return {r for r in range(strange.bit_length()) if strange >> r & 1} if strange else set()

    def close(self) -> None:
        """Let the files of the step go."""
        if self._ready is not None:
            for stored, _ in self._ready.sources:
                self._reader.release(stored.file)
        self._step = self._ready = None

    def _unreadable(self, outcome: native.Outcome, stored: Stored) -> MergeEngineError:
        if outcome.kind == native.ENDS_EARLY:
            return self._reader.ended(stored.file, outcome.offset)
        return self._reader.unreadable(stored.file, os.strerror(outcome.error))

    def _prepare(self, step: Step) -> _Ready | None:
        if len(step.pieces) != 1 or not step.pieces[0].program.flat:
            return None
        program = step.pieces[0].program
        held = [flat_start(load.view) for load in program.loads]
        if not held or any(node.op != "stored" for node, _ in held):
            return None
        sources = tuple((node.stored, first) for node, first in held)
        compiled = self._compile(program, step, [stored for stored, _ in sources])
        if compiled is None:
            return None
        sizes = [stored.dtype.itemsize for stored, _ in sources]
        piece = 1 << (_CACHE // sum(sizes)).bit_length() - 1
        piece = max(_LEAST_PIECE, min(_MOST_PIECE, piece))
        elements = step.block_elements(self._block)
        take = self._arena.take
        self._arena.rewind()
        results = tuple(take(elements, torch_dtype(step.result)) for _ in range(step.results))
        buffers = [take(min(piece, elements), torch_dtype(s.dtype)).data_ptr() for s, _ in sources]
        registers = take((compiled.registers + 1) * native.VECTOR, torch.float64).data_ptr()
        begins = [stored.offset + first * stored.dtype.itemsize for stored, first in sources]
        files = self._opened([stored for stored, _ in sources])
        return _Ready(
            program=compiled,
            piece=piece,
            sources=sources,
            begins=tuple(zip(begins, sizes, strict=True)),
            inputs=(native.Place * len(files))(*(native.Place(file, 0, 0) for file in files)),
            outputs=(native.Place * len(results))(),
            buffers=(c_void_p * len(buffers))(*buffers),
            targets=(c_void_p * len(results))(*(result.data_ptr() for result in results)),
            registers=registers,
            results=results,
            memory=tuple(memory_of(result) for result in results),
        )

    def _opened(self, sources: list[Stored]) -> list[int]:
        files: list[int] = []
        try:
            for stored in sources:
                files.append(self._reader.acquire(stored.file))
        except BaseException:
            for stored in sources[: len(files)]:
                self._reader.release(stored.file)
            raise
        return files

    def _compile(
        self, program: Program, step: Step, sources: list[Stored]
    ) -> native.Program | None:
        """The program as the loop reads it; None: it lacks an operation or a dtype."""
        numbers: list[float] = []
        found = [self._result(result, step, sources) for result in program.results]
        results = [result for result in found if result is not None]
        copies = all(result.copy >= 0 for result in results)
        instructions = [] if copies else self._instructions(program, step, numbers)
        dtypes = [
            native.RAW if copies else native.DTYPES.get(stored.dtype.name) for stored in sources
        ]
        if instructions is None or None in dtypes or len(results) < len(found):
            return None
        pairs = [
            native.Source(dtype, stored.dtype.itemsize)
            for dtype, stored in zip(dtypes, sources, strict=True)
        ]
        return native.Program(
            compute=native.DTYPES[step.compute.name],
            count=len(instructions),
            registers=program.registers,
            source_count=len(sources),
            results=len(results),
            instructions=(native.Instruction * len(instructions))(*instructions),
            sources=(native.Source * len(sources))(*pairs),
            outputs=(native.Result * len(results))(*results),
            numbers=(c_double * len(numbers))(*numbers),
            rounded=(c_float * len(numbers))(*numbers),
        )

    @staticmethod
    def _result(result: ProgramResult, step: Step, sources: list[Stored]) -> native.Result | None:
        size = step.result.itemsize
        if result.copy is not None and sources[result.copy].dtype == step.result:
            return native.Result(native.RAW, size, -1, -1, result.copy)
        code = native.DTYPES.get(step.result.name)
        if code is None or not isinstance(result.value, Register):
            return None
        return native.Result(code, size, result.value.index, result.after, -1)

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
