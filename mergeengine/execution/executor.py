"""Equal workers over the schedule: each takes a block, reads, computes and hands it to the sink."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
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
from mergeengine.execution.fused import NOWHERE, CannotWriteError, FusedRunner
from mergeengine.execution.inputs import Outcomes
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

    def __init__(self, schedule: Schedule, sinks: Sequence[Sink]) -> None:
        self.outcomes: dict[_Outcome, Tensor] = {}
        self.error: BaseException | None = None
        self.not_finite: set[tuple[int, int]] = set()  # model, tensor
        self._block_chunks = schedule.block_chunks
        self._sinks = sinks
        self._users = Counter(_outcome(s) for t in schedule.tensors for s in t.before)
        self._claimed: set[_Outcome] = set()
        self._waiting = deque(schedule.tensors)
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
        tensor = self._waiting[0]
        if _has_whole(tensor) and any(_has_whole(state.tensor) for state in self._active):
            return False  # the projection counts one output with whole nodes at a time
        self._waiting.popleft()
        if all(self._is_done(tensor, chunk) for chunk in range(tensor.write.chunks)):
            self._release(tensor)
        else:
            self._active.append(_State(tensor))
        return True

    def _is_done(self, tensor: TensorSchedule, chunk: int) -> bool:
        """Whether every sink has a chunk: what one of them lacks is made for all."""
        return bool(self._sinks) and all(
            self._sinks[to.model].is_done(to.tensor, chunk) for to in tensor.destinations
        )

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
            while first < chunks and self._is_done(state.tensor, first):
                first += 1
        last = first
        while last < min(chunks, first + most) and not (
            step.kind == "write" and self._is_done(state.tensor, last)
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
    *sinks: Sink,
    pipeline: Pipeline | None = None,
    reader: Reader | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[str]]:
    """Run a schedule: every chunk that a sink (one for each model) does not have yet is handed to
    it, and to those that take the same tensor of another model with it.

    The CPU computes, or the accelerators of a ``pipeline`` that was opened for this schedule.
    Returns for each model the names of tensors in which values that are not finite were computed.
    ``progress`` is called with the bytes of each finished output block. The first error of any
    worker is raised here after the others have finished their block; so is Interrupted, after
    Ctrl-C. PyTorch's own threads are set to one meanwhile: workers are the parallelism.
    """
    work = _Work(schedule, sinks)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        files = reader or stack.enter_context(Reader())
        jobs: list[Callable[[], None]]
        # Leaving the pool waits for every worker: none still writes when its files are closed.
        if pipeline is None:
            jobs = [partial(_work_on, schedule, work, sinks, files, progress)] * schedule.workers
        else:
            jobs = pipeline.jobs(work, sinks, files, progress)
        with ThreadPoolExecutor(len(jobs)) as pool:
            workers = [pool.submit(job) for job in jobs]
            try:
                wait(workers)
            except KeyboardInterrupt:
                work.fail(Interrupted("stopped; run the same command again to go on from here"))
    if work.error is not None:
        raise work.error
    names = {
        (to.model, to.tensor): to.output.name
        for tensor in schedule.tensors
        for to in tensor.destinations
    }
    strange = sorted(work.not_finite)
    return [[names[m, t] for m, t in strange if m == model] for model in range(len(sinks))]


def loop_name(pipeline: Pipeline | None) -> str:
    """What computes flat blocks: the compiled loop's instructions, or ``torch``."""
    loop = native.library() if pipeline is None else None
    return "torch" if loop is None else loop.name


def stream(schedule: Schedule, reader: Reader) -> Iterator[tuple[TensorSchedule, int, Tensor]]:
    """One model's tensors block by block in order, in this thread: (tensor, flat start, values).

    Values are flat, and valid until the next block is asked for.
    """
    work = _Work(schedule, ())
    with _Worker(schedule, reader, work.outcomes) as worker:
        while (task := work.next()) is not None:
            left = None
            if task.step.kind == "write":
                start, stop = _span(task)
                if worker.fused is not None and worker.fused.takes(task.step):
                    (values,) = worker.fused.run(start, stop)
                else:
                    (values,) = worker.runner.run(task.step, start, stop)
                yield task.state.tensor, start, values
            else:
                left = _leave(worker.runner, task)
            work.done(task, left)


class _Worker:
    """What one thread on the CPU computes with: torch, and the compiled loop where there is one."""

    def __init__(self, schedule: Schedule, reader: Reader, outcomes: Outcomes) -> None:
        arena = Arena(schedule.arena_bytes)
        self.runner = BlockRunner(arena, reader, outcomes)
        loop, block = native.library(), schedule.block_chunks * CHUNK
        self.fused = FusedRunner(loop, arena, reader, self.runner, block) if loop else None

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.fused is not None:
            self.fused.close()


def _work_on(
    schedule: Schedule,
    work: _Work,
    sinks: Sequence[Sink],
    reader: Reader,
    progress: Callable[[int], None] | None,
) -> None:
    try:
        torch.set_num_threads(1)
        files = [sink if isinstance(sink, FileSink) else None for sink in sinks]
        with _Worker(schedule, reader, work.outcomes) as worker:
            runner, fused = worker.runner, worker.fused
            while (task := work.next()) is not None:
                if task.step.kind == "write":
                    if fused is not None and fused.takes(task.step):
                        _write_directly(fused, task, sinks, files)
                        strange = fused.not_finite
                    else:
                        blocks = runner.run(task.step, *_span(task))
                        strange = runner.not_finite
                        for to, values in zip(task.state.tensor.destinations, blocks, strict=True):
                            sinks[to.model].write(to.tensor, task.first, memory_of(values))
                    for number in strange:
                        to = task.state.tensor.destinations[number]
                        work.not_finite.add((to.model, to.tensor))
                    work.done(task, None)
                    if progress is not None:
                        start, stop = _span(task)
                        step = task.step
                        progress(step.results * (stop - start) * step.result.itemsize)
                else:
                    work.done(task, _leave(runner, task))
    except BaseException as error:  # handed to the thread that waits
        work.fail(error)


def _write_directly(
    fused: FusedRunner, task: _Task, sinks: Sequence[Sink], files: Sequence[FileSink | None]
) -> None:
    """Compute a block and write it piece by piece, while the pieces are in the cache."""
    start, stop = _span(task)
    destinations = task.state.tensor.destinations
    places = []
    for to in destinations:
        file = files[to.model]
        places.append(NOWHERE if file is None else file.place(to.tensor, task.first))
    try:
        fused.run(start, stop, places)
    except CannotWriteError as error:
        to = destinations[error.result]
        file = files[to.model]
        assert file is not None
        raise file.failed(to.tensor, error) from error
    for to, data in zip(destinations, fused.written(stop - start), strict=True):
        file = files[to.model]
        if file is None:
            sinks[to.model].write(to.tensor, task.first, data)
        else:
            file.record(to.tensor, task.first, data)


def _leave(runner: BlockRunner, task: _Task) -> Tensor:
    """What a block of a reduction, or a whole node, leaves behind."""
    step = task.step
    if task.state.fold is not None:
        start, stop = _span(task)
        return task.state.fold.partial(task.first, *runner.run(step, start, stop))
    operand = torch.empty(step.operand.numel, dtype=torch_dtype(step.compute))
    for start in range(0, operand.numel(), CHUNK):
        stop = min(start + CHUNK, operand.numel())
        (operand[start:stop],) = runner.run(step, start, stop)
    return run_whole(step.node, operand.view(step.operand.shape))


def _span(task: _Task) -> tuple[int, int]:
    return task.first * CHUNK, min(task.last * CHUNK, task.step.operand.numel)


def _outcome(step: Step) -> _Outcome:
    return step.node, step.compute.name


def _has_whole(tensor: TensorSchedule) -> bool:
    return any(step.kind == "whole" for step in tensor.before)
