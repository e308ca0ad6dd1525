"""Whole blocks by the compiled loop: which steps it can take, and what it is given."""

import os
from collections.abc import Mapping, Sequence
from ctypes import Array, c_double, c_ubyte, c_void_p
from dataclasses import dataclass

from xxhash import xxh3_128_digest

from mergeengine.compiler.schedule import ALIGNMENT, Step
from mergeengine.errors import MergeEngineError
from mergeengine.execution import native
from mergeengine.execution.loop_program import Numbers, compiled, constant, sources_of
from mergeengine.execution.memory import HostMemory, apart, bytes_at
from mergeengine.execution.precision import Sums
from mergeengine.execution.reader import Reader
from mergeengine.lazy.dtypes import FLOAT64
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
    files. ``results`` are addresses with room for the largest block, of elements of ``itemsize``
    bytes. Only the places in ``inputs``, ``outputs`` and ``targets`` change from block to block.
    ``held`` are the sources that lie in no file of this machine, by number: the address where a
    block of them is put.
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
    results: tuple[int, ...]
    itemsize: int
    held: Mapping[int, int]


class FusedRunner:
    """Runs blocks of output passes whose one piece is flat, in the memory of one worker.

    The files of the step at hand are kept open; ``close`` lets go of them. ``block`` is in
    elements. ``measured``: ``sums`` are wanted.
    """

    def __init__(
        self,
        library: native.Library,
        memory: HostMemory,
        reader: Reader,
        block: int,
        numbers: Numbers = constant,
        *,
        measured: bool = False,
    ) -> None:
        self._library = library
        self._memory = memory
        self._reader = reader
        self._block = block
        self._numbers = numbers
        self._step: Step | None = None
        self._ready: _Ready | None = None
        self._outcome = native.Outcome()
        self._measured = measured
        self._sums: Array[c_double] | None = None

    def takes(self, step: Step) -> bool:
        """Whether the loop can run this step; all values of earlier passes must be known."""
        if self._step is not step:
            self.close()
            self._step = step
            self._ready = self._prepare(step)
        return self._ready is not None

    def compute(self, start: int, stop: int) -> list[memoryview]:
        """Elements ``start:stop`` (a block at most) of each result of the step that ``takes`` was
        last asked for, as bytes, which are valid until the next block.

        Raises CheckpointError for what cannot be read.
        """
        assert self._ready is not None
        for number, result in enumerate(self._ready.results):
            self._ready.outputs[number].file = -1
            self._ready.targets[number] = result
        self._run(self._ready, start, stop, None)
        size = (stop - start) * self._ready.itemsize
        return [bytes_at(result, size) for result in self._ready.results]

    def write(self, start: int, stop: int, places: Sequence[FileRange]) -> list[list[bytes]]:
        """Compute elements ``start:stop`` (whole chunks, however many, or a block at most where
        something is remote) of each result, and write them to its place; the digest of each
        chunk, XXH3-128, of each result.

        Raises CheckpointError for what cannot be read, CannotWriteError for what cannot be written.
        """
        assert self._ready is not None
        ready, count = self._ready, len(places)
        for number, (file, offset) in enumerate(places):
            ready.outputs[number].file, ready.outputs[number].offset = file, offset
            ready.targets[number] = ready.results[number] + apart(offset)
        chunks = chunk_count(stop - start)
        found = (c_ubyte * (16 * chunks * count))()
        self._run(ready, start, stop, found)
        raw = bytes(found)
        digests = [
            [raw[at : at + 16] for at in range(16 * number, len(raw), 16 * count)]
            for number in range(count)
        ]
        last = (stop - start - (chunks - 1) * CHUNK) * ready.itemsize
        if last <= native.SHORT:  # then it is all in the last piece
            for number, target in enumerate(ready.targets):
                digests[number][-1] = xxh3_128_digest(bytes_at(target or 0, last))
        return digests

    @property
    def sums(self) -> list[list[Sums]]:
        """Of the last chunks, of each result (see ``precision``; zeros of what is no sum)."""
        assert self._ready is not None
        assert self._sums is not None
        count, found = 2 * len(self._ready.results), list(self._sums)
        return [
            list(zip(found[at::count], found[at + 1 :: count], strict=True))
            for at in range(0, count, 2)
        ]

    @property
    def not_finite(self) -> set[int]:
        """The last block's results that hold infinities or NaN that it computed."""
        strange: int = self._outcome.strange
        return {r for r in range(strange.bit_length()) if strange >> r & 1} if strange else set()

    def close(self) -> None:
        """Let the files of the step go."""
        if self._ready is not None:
            self._release(self._ready.sources)
        self._step = self._ready = None

    def _run(self, ready: _Ready, start: int, stop: int, digests: Array[c_ubyte] | None) -> None:
        for number, (first, size) in enumerate(ready.begins):
            place, offset = ready.inputs[number], first + start * size
            if number not in ready.held:
                place.offset = offset
                continue
            assert stop - start <= self._block
            place.offset = ready.held[number]
            room = bytes_at(place.offset, (stop - start) * size)
            self._reader.read_into(ready.sources[number][0].file, offset, room)
        outcome = self._outcome
        if self._measured:
            self._sums = (c_double * (2 * chunk_count(stop - start) * len(ready.results)))()
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
            self._sums,
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
        sources = sources_of(step)
        if sources is None:
            return None
        program = compiled(step, sources, self._numbers)
        sizes = [stored.dtype.itemsize for stored, _ in sources]
        piece = 1 << (_CACHE // sum(sizes)).bit_length() - 1
        piece = max(min(_LEAST_PIECE, step.strip), min(_MOST_PIECE, piece))
        elements = step.block_elements(self._block)
        take = self._memory.take
        self._memory.rewind()
        # Room for a file's place in a page, which is known when a block is written.
        room = elements * step.result.itemsize + ALIGNMENT
        results = tuple(take(room) for _ in range(step.results))
        begins = [stored.offset + first * stored.dtype.itemsize for stored, first in sources]
        remote = [stored.file.is_remote for stored, _ in sources]
        buffers = [
            take((elements if is_remote else min(piece, elements)) * size, begin)
            for size, begin, is_remote in zip(sizes, begins, remote, strict=True)
        ]
        registers = take((program.registers + 1) * native.VECTOR * FLOAT64.itemsize)
        files = self._opened(sources)
        return _Ready(
            program=program,
            piece=piece,
            sources=tuple(sources),
            begins=tuple(zip(begins, sizes, strict=True)),
            inputs=(native.Place * len(files))(*(native.Place(file, 0, 0) for file in files)),
            outputs=(native.Place * len(results))(),
            buffers=(c_void_p * len(buffers))(*buffers),
            targets=(c_void_p * len(results))(),
            registers=registers,
            results=results,
            itemsize=step.result.itemsize,
            held={number: buffers[number] for number, held in enumerate(remote) if held},
        )

    def _opened(self, sources: Sequence[tuple[Stored, int]]) -> list[int]:
        """The sources' descriptors; -1 for what is remote."""
        files: list[int] = []
        try:
            for stored, _ in sources:
                remote = stored.file.is_remote
                files.append(-1 if remote else self._reader.acquire(stored.file))
        except BaseException:
            self._release(sources[: len(files)])
            raise
        return files

    def _release(self, sources: Sequence[tuple[Stored, int]]) -> None:
        for stored, _ in sources:
            if not stored.file.is_remote:
                self._reader.release(stored.file)
