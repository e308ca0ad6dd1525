"""Equal workers over the schedule: each takes a block, reads, computes and hands it to the sink."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from mergeengine.compiler.schedule import Schedule, TensorSchedule
from mergeengine.errors import Interrupted
from mergeengine.execution import native
from mergeengine.execution.arena import Arena, memory_of
from mergeengine.execution.blocks import BlockRunner
from mergeengine.execution.fused import CannotWriteError, FusedRunner
from mergeengine.execution.inputs import Outcomes
from mergeengine.execution.kernels import torch_dtype
from mergeengine.execution.pipeline import Pipeline
from mergeengine.execution.reader import Reader
from mergeengine.execution.whole import run_whole
from mergeengine.execution.work import FileSink, Sink, Task, Work, span
from mergeengine.lazy.partition import CHUNK

_MOST_RUN = 8  # chunks that a worker is handed at a time
_RUNS = 16  # and so many times at least


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
    work = Work(schedule, sinks, _run_chunks(schedule) if pipeline is None else None)
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
    work = Work(schedule, ())
    with _Worker(schedule, reader, work.outcomes) as worker:
        while (task := work.next()) is not None:
            left = None
            if task.step.kind == "write":
                start, stop = span(task)
                if worker.fused is not None and worker.fused.takes(task.step):
                    (values,) = worker.fused.compute(start, stop)
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
    work: Work,
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
                if task.step.kind != "write":
                    work.done(task, _leave(runner, task))
                    continue
                if fused is not None and fused.takes(task.step) and None not in files:
                    _write_directly(fused, task, files, work, progress)
                else:
                    _write_blocks(runner, fused, schedule.block_chunks, task, sinks, work, progress)
                work.done(task, None)
    except BaseException as error:  # handed to the thread that waits
        work.fail(error)


def _write_directly(
    fused: FusedRunner,
    task: Task,
    files: Sequence[FileSink | None],
    work: Work,
    progress: Callable[[int], None] | None,
) -> None:
    """Compute chunks and write them piece by piece, while the pieces are in the cache."""
    start, stop = span(task)
    destinations = task.state.tensor.destinations
    ways = [(sink, to.tensor) for to in destinations if (sink := files[to.model]) is not None]
    try:
        digests = fused.write(start, stop, [sink.place(n, task.first) for sink, n in ways])
    except CannotWriteError as error:
        sink, tensor = ways[error.result]
        raise sink.failed(tensor, error) from error
    for (sink, tensor), found in zip(ways, digests, strict=True):
        sink.record(tensor, task.first, found)
    _finished(task, fused.not_finite, start, stop, work, progress)


def _write_blocks(
    runner: BlockRunner,
    fused: FusedRunner | None,
    block_chunks: int,
    task: Task,
    sinks: Sequence[Sink],
    work: Work,
    progress: Callable[[int], None] | None,
) -> None:
    """Compute chunks block by block and hand them to the sinks."""
    quick = fused if fused is not None and fused.takes(task.step) else None
    for first in range(task.first, task.last, block_chunks):
        start, stop = span(task, first, min(first + block_chunks, task.last))
        blocks = (
            quick.compute(start, stop) if quick is not None else runner.run(task.step, start, stop)
        )
        for to, values in zip(task.state.tensor.destinations, blocks, strict=True):
            sinks[to.model].write(to.tensor, first, memory_of(values))
        strange = quick.not_finite if quick is not None else runner.not_finite
        _finished(task, strange, start, stop, work, progress)


def _finished(
    task: Task,
    strange: set[int],
    start: int,
    stop: int,
    work: Work,
    progress: Callable[[int], None] | None,
) -> None:
    """Elements of a task are with the sinks."""
    for number in strange:
        to = task.state.tensor.destinations[number]
        work.not_finite.add((to.model, to.tensor))
    if progress is not None:
        progress(task.step.results * (stop - start) * task.step.result.itemsize)


def _run_chunks(schedule: Schedule) -> int:
    """How many chunks to hand out at a time: many, but so that no worker waits long at the end."""
    chunks = sum(tensor.write.chunks for tensor in schedule.tensors)
    run = min(_MOST_RUN, chunks // (_RUNS * schedule.workers))
    return max(1, run // schedule.block_chunks) * schedule.block_chunks


def _leave(runner: BlockRunner, task: Task) -> Tensor:
    """What a block of a reduction, or a whole node, leaves behind."""
    step = task.step
    if task.state.fold is not None:
        start, stop = span(task)
        return task.state.fold.partial(task.first, *runner.run(step, start, stop))
    operand = torch.empty(step.operand.numel, dtype=torch_dtype(step.compute))
    for start in range(0, operand.numel(), CHUNK):
        stop = min(start + CHUNK, operand.numel())
        (operand[start:stop],) = runner.run(step, start, stop)
    return run_whole(step.node, operand.view(step.operand.shape))
