"""Equal workers over the schedule: each takes a block, reads, computes and hands it to the sink.

torch is only imported where a pass needs it: most merges are done by the compiled loop alone, in
less time than torch takes to be imported.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from mergeengine.compiler.schedule import Schedule, TensorSchedule
from mergeengine.errors import Interrupted
from mergeengine.execution import native
from mergeengine.execution.fused import CannotWriteError, FusedRunner
from mergeengine.execution.loop_program import constant, needs_no_torch
from mergeengine.execution.memory import HostMemory
from mergeengine.execution.nonfinite import Examiner, Guard, NotFinite
from mergeengine.execution.precision import Precision, Sums
from mergeengine.execution.reader import Reader
from mergeengine.execution.watch import Watch
from mergeengine.execution.work import FileSink, Outcomes, Sink, Task, Work, span
from mergeengine.lazy.partition import CHUNK

if TYPE_CHECKING:
    from torch import Tensor

    from mergeengine.execution.blocks import BlockRunner
    from mergeengine.execution.pipeline import Pipeline

_MOST_RUN = 8  # chunks that a worker is handed at a time
_RUNS = 16  # and so many times at least


def execute(
    schedule: Schedule,
    *sinks: Sink,
    pipeline: "Pipeline | None" = None,
    reader: Reader | None = None,
    progress: Callable[[int], None] | None = None,
    precision: Precision | None = None,
    guards: Sequence[Guard] | None = None,
) -> list[list[NotFinite]]:
    """Run a schedule: every chunk that a sink (one for each model) does not have yet is handed to
    it, and to those that take the same tensor of another model with it.

    The CPU computes, or the accelerators of a ``pipeline`` that was opened for this schedule.
    Returns for each model the tensors in which there are values that are not finite; what is done
    about them its guard decides (``guards``; without them nothing is), which may know of some from
    an earlier run.
    ``progress`` is called with the bytes of each finished output block; ``precision`` hears what
    rounding lost. The first error of any
    worker is raised here after the others have finished their block; so is Interrupted, after
    Ctrl-C. PyTorch's own threads are set to one meanwhile: workers are the parallelism.
    """
    work = Work(schedule, sinks, _run_chunks(schedule) if pipeline is None else None)
    guards = guards or [Guard() for _ in sinks]
    alone = pipeline is None and _loop_suffices(schedule)
    with ExitStack() as stack:
        if not alone:
            stack.enter_context(_one_thread())
        files = reader or stack.enter_context(Reader(schedule.transfers))
        examiner = Examiner(guards, files, work.outcomes)
        watch = Watch(progress or (lambda size: None), precision, examiner)
        jobs: list[Callable[[], None]]
        # Leaving the pool waits for every worker: none still writes when its files are closed.
        if pipeline is None:
            job = partial(_work_on, schedule, work, sinks, files, watch, alone=alone)
            jobs = [job] * schedule.workers
        else:
            jobs = pipeline.jobs(work, sinks, files, watch)
        with ThreadPoolExecutor(len(jobs)) as pool:
            workers = [pool.submit(job) for job in jobs]
            try:
                wait(workers)
            except KeyboardInterrupt:
                work.fail(Interrupted("stopped; run the same command again to go on from here"))
                files.stop()
    if work.error is not None:
        raise work.error
    return [[guard.found[tensor] for tensor in sorted(guard.found)] for guard in guards]


def loop_name(pipeline: "Pipeline | None") -> str:
    """What computes flat blocks: the compiled loop's instructions, or ``torch``."""
    loop = native.library() if pipeline is None else None
    return "torch" if loop is None else loop.name


def stream(schedule: Schedule, reader: Reader) -> "Iterator[tuple[TensorSchedule, int, Tensor]]":
    """One model's tensors block by block in order, in this thread: (tensor, flat start, values).

    Values are flat, and valid until the next block is asked for.
    """
    import torch

    from mergeengine.execution.kernels import torch_dtype

    work = Work(schedule, ())
    with _Worker(schedule, reader, work.outcomes, alone=False) as worker:
        while (task := work.next()) is not None:
            left = None
            if task.step.kind == "write":
                start, stop = span(task)
                ((data,), _, _) = worker.block(task, start, stop)
                dtype = torch_dtype(task.step.result)
                values = (
                    torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
                )
                yield task.state.tensor, start, values
            else:
                left = worker.leave(task)
            work.done(task, left)


def import_torch_for(schedule: Schedule, *, everything: bool) -> None:
    """Import torch now, if executing will take it (or with ``everything``): not to be measured as
    work."""
    if everything or not _loop_suffices(schedule):
        import_module("mergeengine.execution.blocks")


def _loop_suffices(schedule: Schedule) -> bool:
    return native.library() is not None and all(
        needs_no_torch(step) for tensor in schedule.tensors for step in tensor.steps
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch without threads of its own."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Worker:
    """What one thread on the CPU computes with: the compiled loop where there is one, and torch
    unless the loop does all ``alone``."""

    def __init__(
        self,
        schedule: Schedule,
        reader: Reader,
        outcomes: Outcomes,
        *,
        alone: bool,
        measured: bool = False,
    ) -> None:
        memory = HostMemory(schedule.arena_bytes)
        loop, block = native.library(), schedule.block_chunks * CHUNK
        self._runner = None if alone else _runner(memory, reader, outcomes)
        numbers = self._runner.number if self._runner is not None else constant
        self.fused = (
            FusedRunner(loop, memory, reader, block, numbers, measured=measured) if loop else None
        )
        self._measured = measured

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.fused is not None:
            self.fused.close()

    @property
    def runner(self) -> "BlockRunner":
        assert self._runner is not None, "the loop cannot do this alone"
        return self._runner

    def block(
        self, task: Task, start: int, stop: int
    ) -> tuple[list[memoryview], set[int], list[list[Sums]]]:
        """The bytes of each result's elements, which of the results are not finite, and what their
        rounding lost, where that is measured."""
        if self.fused is not None and self.fused.takes(task.step):
            data = self.fused.compute(start, stop)
            return data, self.fused.not_finite, self.fused.sums if self._measured else []
        from mergeengine.execution.arena import memory_of

        blocks = self.runner.run(task.step, start, stop)
        found = [memory_of(values) for values in blocks], self.runner.not_finite
        measure = self.runner.measure
        return *found, measure(task.state.tensor, start, stop, blocks) if self._measured else []

    def leave(self, task: Task) -> "Tensor":
        """What a block of a reduction, or a whole node, leaves behind."""
        import torch

        from mergeengine.execution.kernels import torch_dtype
        from mergeengine.execution.whole import run_whole

        step = task.step
        if task.state.fold is not None:
            return task.state.fold.partial(task.first, *self.runner.run(step, *span(task)))
        operand = torch.empty(step.operand.numel, dtype=torch_dtype(step.compute))
        for start in range(0, operand.numel(), CHUNK):
            stop = min(start + CHUNK, operand.numel())
            (operand[start:stop],) = self.runner.run(step, start, stop)
        return run_whole(step.node, operand.view(step.operand.shape))


def _runner(memory: HostMemory, reader: Reader, outcomes: Outcomes) -> "BlockRunner":
    import torch

    from mergeengine.execution.arena import Arena
    from mergeengine.execution.blocks import BlockRunner

    torch.set_num_threads(1)
    return BlockRunner(Arena(memory), reader, outcomes)


def _work_on(
    schedule: Schedule,
    work: Work,
    sinks: Sequence[Sink],
    reader: Reader,
    watch: Watch,
    *,
    alone: bool,
) -> None:
    try:
        files = [sink for sink in sinks if isinstance(sink, FileSink)]
        to_files = len(files) == len(sinks)
        measured = watch.precision is not None
        with _Worker(schedule, reader, work.outcomes, alone=alone, measured=measured) as worker:
            while (task := work.next()) is not None:
                if task.step.kind != "write":
                    work.done(task, worker.leave(task))
                    continue
                direct = to_files and worker.fused is not None and worker.fused.takes(task.step)
                if not (direct and _write_directly(worker, task, files, watch)):
                    _write_blocks(worker, schedule.block_chunks, task, sinks, watch)
                work.done(task, None)
    except BaseException as error:  # handed to the thread that waits
        work.fail(error)


def _write_directly(worker: _Worker, task: Task, files: Sequence[FileSink], watch: Watch) -> bool:
    """Compute chunks and write them piece by piece, while the pieces are in the cache.

    False where something is not finite: then the chunks must be looked at before they count.
    """
    fused = worker.fused
    assert fused is not None
    start, stop = span(task)
    ways = [(files[to.model], to.tensor) for to in task.state.tensor.destinations]
    try:
        digests = fused.write(start, stop, [sink.place(n, task.first) for sink, n in ways])
    except CannotWriteError as error:
        sink, tensor = ways[error.result]
        raise sink.failed(tensor, error) from error
    if fused.not_finite:
        return False
    sums = fused.sums if watch.precision else []
    notes = watch.notes(task, start, sums, {})
    for (sink, tensor), found, told in zip(ways, digests, notes, strict=True):
        sink.record(tensor, task.first, found, told)
    watch.done(task, start, stop, sums)
    return True


def _write_blocks(
    worker: _Worker, block_chunks: int, task: Task, sinks: Sequence[Sink], watch: Watch
) -> None:
    """Compute chunks block by block and hand them to the sinks."""
    for first in range(task.first, task.last, block_chunks):
        start, stop = span(task, first, min(first + block_chunks, task.last))
        blocks, strange, sums = worker.block(task, start, stop)
        tensor = task.state.tensor
        found = watch.examiner.look(tensor, start, blocks, strange) if strange else {}
        notes = watch.notes(task, start, sums, found)
        for to, data, told in zip(tensor.destinations, blocks, notes, strict=True):
            sinks[to.model].write(to.tensor, first, data, told)
        watch.done(task, start, stop, sums)


def _run_chunks(schedule: Schedule) -> int:
    """How many chunks to hand out at a time: many, but so that no worker waits long at the end.

    Of remote files a block at a time: then the workers share the spans that are in memory.
    """
    if schedule.transfers is not None:
        return schedule.block_chunks
    chunks = sum(tensor.write.chunks for tensor in schedule.tensors)
    run = min(_MOST_RUN, chunks // (_RUNS * schedule.workers))
    return max(1, run // schedule.block_chunks) * schedule.block_chunks
