"""Equal workers over the schedule: each takes a block, reads, computes and hands it to the sink."""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from threading import Condition
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mergeengine.compiler.schedule import LOOKAHEAD, Schedule, Step, TensorSchedule
from mergeengine.errors import Interrupted, MergeEngineError
from mergeengine.execution import native
from mergeengine.execution.arena import Arena, memory_of
from mergeengine.execution.blocks import BlockRunner
from mergeengine.execution.fused import FileRange, FusedRunner
from mergeengine.execution.kernels import torch_dtype
from mergeengine.execution.pipeline import Pipeline
from mergeengine.execution.reader import Reader
from mergeengine.execution.reductions import Fold, fold_of
from mergeengine.execution.whole import run_whole
from mergeengine.lazy.nodes import Node
from mergeengine.lazy.partition import CHUNK

_Outcome = tuple[Node, str]


class Sink(Protocol):
    """Where finished blocks go. Both methods are called from many threads."""

    def is_done(self, tensor: int, chunk: int) -> bool:
        """Whether a chunk need not be made again."""

    def write(self, tensor: int, first_chunk: int, data: memoryview) -> None:
        """Take the bytes of consecutive chunks; they are valid during the call."""


@runtime_checkable
class FileSink(Sink, Protocol):
    """A sink of files, which whoever computes a block may write to itself."""

    def place(self, tensor: int, chunk: int) -> tuple[int, int]:
        """The open file that a chunk goes to, and the offset there..."""

    def record(self, tensor: int, first_chunk: int, data: memoryview) -> None:
        """... and then: consecutive chunks with these bytes are in their place."""

    def failed(self, tensor: int, error: OSError) -> MergeEngineError:
        """The error to raise where writing there fails."""


@dataclass(slots=True)
class _State:
    """How far one output tensor is: the current pass and what of it is under way."""

    index: int
    tensor: TensorSchedule
    position: int = 0  # in tensor.steps
    running: bool = False
    next_chunk: int = 0
    pending: int = 0  # blocks handed out and not yet finished
    fold: Fold | None = None

    @property
    def step(self) -> Step:
        return self.tensor.steps[self.position]

    @property
    def finished(self) -> bool:
        return self.position == len(self.tensor.steps)


@dataclass(frozen=True, slots=True)
class _Task:
    """Chunks ``first`` to ``last`` of a pass; of a whole node, all of them."""

    state: _State
    step: Step
    first: int
    last: int


class _Work:
    """Hands out blocks in order; a tensor's next pass starts when its last one is complete."""

    def __init__(self, schedule: Schedule, sink: "Sink | _Nothing") -> None:
        self.outcomes: dict[_Outcome, Tensor] = {}
        self.error: BaseException | None = None
        self.not_finite: set[int] = set()
        self._block_chunks = schedule.block_chunks
        self._sink = sink
        self._users = Counter(_outcome(s) for t in schedule.tensors for s in t.before)
        self._claimed: set[_Outcome] = set()
        self._waiting = deque(enumerate(schedule.tensors))
        self._active: list[_State] = []
        self._changed = Condition()

    def next(self, *, wait: bool = True) -> _Task | None:
        """The next block, waiting for one if need be; None when there is nothing more to do, or,
        without ``wait``, nothing at the moment."""
        with self._changed:
            while self.error is None:
                for state in self._active:
                    task = self._hand_out(state)
                    if task is not None:
                        return task
                self._active = [state for state in self._active if not state.finished]
                if self._activate():
                    continue
                if not self._active or not wait:
                    return None
                self._changed.wait()
        return None

    def fail(self, error: BaseException) -> None:
        """Stop handing out blocks; the first error counts."""
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()

    def done(self, task: _Task, left: Tensor | None) -> None:
        """A block is finished; ``left`` is what a reduction's chunk or a whole node leaves."""
        state = task.state
        with self._changed:
            state.pending -= 1
            if state.fold is not None and left is not None:
                state.fold.accept(task.first, left)
            if state.pending == 0 and state.next_chunk >= task.step.chunks:
                self._end_pass(state, left)
            self._changed.notify_all()

    def _activate(self) -> bool:
        if not self._waiting or len(self._active) >= LOOKAHEAD:
            return False
        index, tensor = self._waiting[0]
        if _has_whole(tensor) and any(_has_whole(state.tensor) for state in self._active):
            return False  # the projection counts one output with whole nodes at a time
        self._waiting.popleft()
        if all(self._sink.is_done(index, chunk) for chunk in range(tensor.write.chunks)):
            self._release(tensor)
        else:
            self._active.append(_State(index, tensor))
        return True

    def _hand_out(self, state: _State) -> _Task | None:
        """The next block of a tensor, or None where there is none at the moment."""
        while not state.finished:
            step = state.step
            if not state.running:
                key = _outcome(step)
                if step.kind != "write":
                    if key in self.outcomes:
                        state.position += 1
                        continue
                    if key in self._claimed:
                        return None  # another output is computing it
                    self._claimed.add(key)
                state.fold = fold_of(step.node) if step.kind == "reduce" else None
                state.next_chunk = 0
                state.running = True
            task = self._block(state, step)
            if task is not None or state.pending:
                return task
            self._end_pass(state, None)
        return None

    def _block(self, state: _State, step: Step) -> _Task | None:
        first, chunks = state.next_chunk, step.chunks
        most = {"write": self._block_chunks, "reduce": 1, "whole": chunks}[step.kind]
        if step.kind == "write":
            while first < chunks and self._sink.is_done(state.index, first):
                first += 1
        last = first
        while last < min(chunks, first + most) and not (
            step.kind == "write" and self._sink.is_done(state.index, last)
        ):
            last += 1
        state.next_chunk = last
        if first == last:
            return None
        state.pending += 1
        return _Task(state, step, first, last)

    def _end_pass(self, state: _State, left: Tensor | None) -> None:
        step = state.step
        if step.kind == "write":
            self._release(state.tensor)
        else:
            result = state.fold.finish_pass() if state.fold is not None else left
            if result is None:
                state.next_chunk = 0  # the same again: a select by digits takes several passes
                return
            self.outcomes[_outcome(step)] = result
        state.running = False
        state.position += 1

    def _release(self, tensor: TensorSchedule) -> None:
        for step in tensor.before:
            key = _outcome(step)
            self._users[key] -= 1
            if not self._users[key]:
                self.outcomes.pop(key, None)


def execute(
    schedule: Schedule,
    sink: Sink,
    *,
    pipeline: Pipeline | None = None,
    reader: Reader | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Run a schedule: every chunk that the sink does not have yet is handed to it once.

    The CPU computes, or the accelerators of a ``pipeline`` that was opened for this schedule.
    Returns the names of outputs in which values that are not finite were computed.
    ``progress`` is called with the bytes of each finished output block. The first error of any
    worker is raised here after the others have finished their block; so is Interrupted, after
    Ctrl-C. PyTorch's own threads are set to one meanwhile: workers are the parallelism.
    """
    work = _Work(schedule, sink)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        files = reader or stack.enter_context(Reader())
        jobs: list[Callable[[], None]]
        # Leaving the pool waits for every worker: none still writes when its files are closed.
        if pipeline is None:
            jobs = [partial(_worker, schedule, work, sink, files, progress)] * schedule.workers
        else:
            jobs = pipeline.jobs(work, sink, files, progress)
        with ThreadPoolExecutor(len(jobs)) as pool:
            workers = [pool.submit(job) for job in jobs]
            try:
                wait(workers)
            except KeyboardInterrupt:
                work.fail(Interrupted("stopped; run the same command again to go on from here"))
    if work.error is not None:
        raise work.error
    return [schedule.tensors[index].output.name for index in sorted(work.not_finite)]


def loop_name(pipeline: Pipeline | None) -> str:
    """What computes flat blocks: the compiled loop's instructions, or ``torch``."""
    loop = native.library() if pipeline is None else None
    return "torch" if loop is None else loop.name


def stream(schedule: Schedule, reader: Reader) -> Iterator[tuple[TensorSchedule, int, Tensor]]:
    """The outputs block by block in order, in this thread: (tensor, flat start, flat values).

    Values are valid until the next block is asked for.
    """
    work = _Work(schedule, _Nothing())
    arena = Arena(schedule.arena_bytes)
    runner = BlockRunner(arena, reader, work.outcomes)
    fused = _fused(arena, reader, runner)
    while (task := work.next()) is not None:
        if task.step.kind == "write":
            start, stop = _span(task)
            if fused is not None and fused.takes(task.step):
                yield task.state.tensor, start, fused.run(start, stop)
            else:
                yield task.state.tensor, start, runner.run(task.step, start, stop)
            work.done(task, None)
        else:
            work.done(task, _leave(runner, task))


def _fused(arena: Arena, reader: Reader, runner: BlockRunner) -> FusedRunner | None:
    loop = native.library()
    return None if loop is None else FusedRunner(loop, arena, reader, runner)


class _Nothing:
    """What streaming hands blocks out for: nothing is done yet."""

    def is_done(self, tensor: int, chunk: int) -> bool:
        return False


def _worker(
    schedule: Schedule,
    work: _Work,
    sink: Sink,
    reader: Reader,
    progress: Callable[[int], None] | None,
) -> None:
    try:
        torch.set_num_threads(1)
        arena = Arena(schedule.arena_bytes)
        runner = BlockRunner(arena, reader, work.outcomes)
        fused = _fused(arena, reader, runner)
        while (task := work.next()) is not None:
            if task.step.kind == "write":
                if fused is not None and fused.takes(task.step):
                    values = _write_directly(fused, task, sink)
                    strange = fused.not_finite
                else:
                    values = runner.run(task.step, *_span(task))
                    strange = runner.not_finite
                    sink.write(task.state.index, task.first, memory_of(values))
                if strange:
                    work.not_finite.add(task.state.index)
                work.done(task, None)
                if progress is not None:
                    progress(values.numel() * values.itemsize)
            else:
                work.done(task, _leave(runner, task))
    except BaseException as error:  # handed to the thread that waits
        work.fail(error)


def _write_directly(fused: FusedRunner, task: _Task, sink: Sink) -> Tensor:
    """Compute a block and write it piece by piece, while the pieces are in the cache."""
    index = task.state.index
    if not isinstance(sink, FileSink):
        values = fused.run(*_span(task))
        sink.write(index, task.first, memory_of(values))
        return values
    try:
        values = fused.run(*_span(task), FileRange(*sink.place(index, task.first)))
    except OSError as error:
        raise sink.failed(index, error) from error
    sink.record(index, task.first, memory_of(values))
    return values


def _leave(runner: BlockRunner, task: _Task) -> Tensor:
    """What a block of a reduction, or a whole node, leaves behind."""
    step = task.step
    if task.state.fold is not None:
        start, stop = _span(task)
        return task.state.fold.partial(task.first, runner.run(step, start, stop))
    operand = torch.empty(step.operand.numel, dtype=torch_dtype(step.compute))
    for start in range(0, operand.numel(), CHUNK):
        stop = min(start + CHUNK, operand.numel())
        operand[start:stop] = runner.run(step, start, stop)
    return run_whole(step.node, operand.view(step.operand.shape))


def _span(task: _Task) -> tuple[int, int]:
    return task.first * CHUNK, min(task.last * CHUNK, task.step.operand.numel)


def _outcome(step: Step) -> _Outcome:
    return step.node, step.compute.name


def _has_whole(tensor: TensorSchedule) -> bool:
    return any(step.kind == "whole" for step in tensor.before)
