"""Whole blocks by the compiled loop: which steps it can take, and what it is given."""

import os
from collections.abc import Sequence
from ctypes import Array, c_double, c_float, c_ubyte, c_void_p, string_at
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor
from xxhash import xxh3_128_digest

from mergeengine.compiler.program import Apply, Load, Operand, Program, Register
from mergeengine.compiler.program import Result as ProgramResult
from mergeengine.compiler.schedule import ALIGNMENT, Step
from mergeengine.errors import MergeEngineError
from mergeengine.execution import native
from mergeengine.execution.arena import Arena, apart
from mergeengine.execution.blocks import BlockRunner
from mergeengine.execution.kernels import torch_dtype
from mergeengine.execution.reader import Reader
from mergeengine.execution.views import flat_start
from mergeengine.lazy.dtypes import BFLOAT16, FLOAT32
from mergeengine.lazy.partition import CHUNK, chunk_count
from mergeengine.lazy.stored import Stored

_CACHE = 1 << 20  # bytes of all inputs' pieces: about a second-level cache
_LEAST_PIECE, _MOST_PIECE = 1 << 14, 1 << 17

FileRange = tuple[int, int]
"""Where a result goes: an open file and the byte offset in it."""


class CannotWriteError(OSError):
    """The system's error, with the number of the result that could not be written."""

    def __init__(self, error: int, result: int) -> None:
        super().__init__(error, os.strerror(error))
        self.result = result


@dataclass(frozen=True, slots=True)
class _Ready:
    """A step as the loop takes it, everything in its place in the worker's memory.

    ``sources`` are stored tensors, from a flat element on; ``begins`` the same in bytes of their
    files. ``results`` have room for the largest block. Only the places in ``inputs``, ``outputs``
    and ``targets`` change from block to block.
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

    def compute(self, start: int, stop: int) -> list[Tensor]:
        """Elements ``start:stop`` (a block at most) of each result of the step that ``takes`` was
        last asked for. They lie in host memory and are valid until the next block.

        Raises CheckpointError for what cannot be read.
        """
        assert self._ready is not None
        for number, result in enumerate(self._ready.results):
            self._ready.outputs[number].file = -1
            self._ready.targets[number] = result.data_ptr()
        self._run(self._ready, start, stop, None)
        return [result[: stop - start] for result in self._ready.results]

    def write(self, start: int, stop: int, places: Sequence[FileRange]) -> list[list[bytes]]:
        """Compute elements ``start:stop`` (whole chunks, however many) of each result, and write
        them to its place; the digest of each chunk, XXH3-128, of each result.

        Raises CheckpointError for what cannot be read, CannotWriteError for what cannot be written.
        """
        assert self._ready is not None
        ready, count = self._ready, len(places)
        for number, (file, offset) in enumerate(places):
            ready.outputs[number].file, ready.outputs[number].offset = file, offset
            ready.targets[number] = ready.results[number].data_ptr() + apart(offset)
        chunks = chunk_count(stop - start)
        found = (c_ubyte * (16 * chunks * count))()
        self._run(ready, start, stop, found)
        raw = bytes(found)
        digests = [
            [raw[at : at + 16] for at in range(16 * number, len(raw), 16 * count)]
            for number in range(count)
        ]
        last = stop - start - (chunks - 1) * CHUNK
        for number, result in enumerate(ready.results):
            if last * result.itemsize <= native.SHORT:  # then it is all in the last piece
                left = string_at(ready.targets[number] or 0, last * result.itemsize)
                digests[number][-1] = xxh3_128_digest(left)
        return digests

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

    def _run(self, ready: _Ready, start: int, stop: int, digests: Array[c_ubyte] | None) -> None:
        for place, (first, size) in zip(ready.inputs, ready.begins, strict=True):
            place.offset = first + start * size
        outcome = self._outcome
        self._library.run(
            ready.program,
            ready.inputs,
            ready.outputs,
            ready.buffers,
            ready.targets,
            ready.registers,
            stop - start,
            ready.piece,
            CHUNK,
            digests,
            outcome,
        )
        if outcome.kind == native.CANNOT_WRITE:
            raise CannotWriteError(outcome.error, outcome.which)
        if outcome.kind != native.DONE:
            raise self._unreadable(outcome, ready.sources[outcome.which][0])

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
        # Room for a file's place in a page, which is known when a block is written.
        size = elements * step.result.itemsize
        rooms = [take(size + ALIGNMENT, torch.uint8) for _ in range(step.results)]
        results = tuple(room[:size].view(torch_dtype(step.result)) for room in rooms)
        begins = [stored.offset + first * stored.dtype.itemsize for stored, first in sources]
        buffers = [
            take(min(piece, elements), torch_dtype(stored.dtype), begin).data_ptr()
            for (stored, _), begin in zip(sources, begins, strict=True)
        ]
        registers = take((compiled.registers + 1) * native.VECTOR, torch.float64).data_ptr()
        files = self._opened([stored for stored, _ in sources])
        return _Ready(
            program=compiled,
            piece=piece,
            sources=sources,
            begins=tuple(zip(begins, sizes, strict=True)),
            inputs=(native.Place * len(files))(*(native.Place(file, 0, 0) for file in files)),
            outputs=(native.Place * len(results))(),
            buffers=(c_void_p * len(buffers))(*buffers),
            targets=(c_void_p * len(results))(),
            registers=registers,
            results=results,
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
        dtypes = [
            native.RAW if copies else native.DTYPES.get(stored.dtype.name) for stored in sources
        ]
        if len(results) < len(found) or None in dtypes:
            return None
        instructions: list[native.Instruction] | None = []
        if not copies:
            stored = _left_in_place(program, step, sources, {result.after for result in results})
            instructions = self._instructions(program, step, stored, numbers)
            for result in results:
                result.after -= sum(position < result.after for position in stored)
        if instructions is None:
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
        self, program: Program, step: Step, in_place: set[int], numbers: list[float]
    ) -> list[native.Instruction] | None:
        """The loop's words for a program, whose ``numbers`` are gathered; None: it lacks one."""
        places: dict[int, int] = {}  # register -> what it is for the loop

        def operand(of: Operand) -> int:
            """A register's index, STORED + k for source k as it is, or ~k for the number k."""
            if isinstance(of, Register):
                return places[of.index]
            numbers.append(self._runner.number(of.node, step.compute))
            return ~(len(numbers) - 1)

        words = []
        sources = count()
        for position, each in enumerate(program.instructions):
            if isinstance(each, Load):
                source = next(sources)
                if position in in_place:
                    places[each.register.index] = native.STORED + source
                    continue
                code, operands = native.LOAD, [source, 0, 0]
            elif each.op in native.OPERATIONS:
                code = native.OPERATIONS[each.op]
                operands = [operand(of) for of in each.operands]
                operands += operands[:1] * (3 - len(operands))  # what it does not use
            else:
                return None
            places[each.register.index] = each.register.index
            words.append(native.Instruction(code, each.register.index, *operands))
        return words


def _left_in_place(program: Program, step: Step, sources: list[Stored], kept: set[int]) -> set[int]:
    """The loads that need no register: bfloat16 that float32 sums and products use once or twice.
    ``kept`` are instructions whose values are results."""
    found = set()
    loads = iter(sources)
    for position, load in enumerate(program.instructions):
        if not isinstance(load, Load):
            continue
        dtype = next(loads).dtype
        if position in kept or (dtype, step.compute) != (BFLOAT16, FLOAT32):
            continue
        users: list[Apply] = []
        for later in program.instructions[position + 1 :]:
            if isinstance(later, Apply) and load.register in later.operands:
                users.append(later)
            if later.register == load.register:
                break
        simple = all(
            user.op in ("add", "sub", "mul")
            and all(isinstance(operand, Register) for operand in user.operands)
            for user in users
        )
        if simple and len(users) <= 2:
            found.add(position)
    return found
