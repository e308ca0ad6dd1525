"""The loop of an accelerator's worker: read a block, issue it, go on; deliver what came back.

See ``slots`` for what waits for what. Only stored bytes, results and numbers cross the bus:
conversion and arithmetic happen on the device.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from mergeengine.compiler.program import holder
from mergeengine.compiler.ring import SPACING, Ring, numbers_of, ring, spaced
from mergeengine.compiler.schedule import SCRATCH, Schedule, Step
from mergeengine.execution.arena import Arena, memory_of
from mergeengine.execution.blocks import BlockRunner, copy_results, evaluate
from mergeengine.execution.inputs import Inputs, Region, regions
from mergeengine.execution.kernels import round_there, torch_dtype
from mergeengine.execution.memory import HostMemory
from mergeengine.execution.notes import Strange
from mergeengine.execution.precision import Sums
from mergeengine.execution.queues import Device, TorchDevice
from mergeengine.execution.reader import Reader
from mergeengine.execution.slots import Lane, Slot, Slots, copy
from mergeengine.execution.views import sizes_of
from mergeengine.execution.watch import Watch
from mergeengine.execution.whole import run_whole
from mergeengine.execution.work import Sink, Task, Work, span
from mergeengine.lazy.nodes import Node
from mergeengine.lazy.partition import CHUNK

DEFAULT_SHARE = 0.5  # of what is free on a device


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The accelerators of a run, and what it may hold on each: ``device_memory`` bytes."""

    devices: tuple[Device, ...]
    ring: Ring
    device_memory: int

    @property
    def name(self) -> str:
        """``cuda:0,cuda:1``."""
        return ",".join(device.name for device in self.devices)

    def jobs(
        self,
        work: Work,
        sinks: Sequence[Sink],
        reader: Reader,
        watch: Watch,
    ) -> list[Callable[[], None]]:
        """What the workers' threads do: run until nothing is left, or until the first error.

        Blocks go to whichever device is free. ResourceError where a device's memory is taken.
        """
        lanes = [Lane(device, self.ring) for device in self.devices]
        return [
            _Worker(lanes[n % len(lanes)], self.ring, work, sinks, reader, watch).run
            for n in range(self.ring.workers)
        ]


def open_pipeline(
    schedule: Schedule,
    devices: Sequence[torch.device],
    *,
    workers: int,
    memory: int,
    device_memory: int | None = None,
) -> Pipeline | None:
    """How accelerators run a schedule with ``memory`` bytes of the host and ``device_memory`` bytes
    of each (default: half of what is free there). None for the CPU. Nothing is allocated yet.

    ResourceError where it cannot fit.
    """
    if devices[0].type == "cpu":
        return None
    opened = tuple(TorchDevice(device) for device in devices)
    allowed = device_memory or int(min(each.free_bytes for each in opened) * DEFAULT_SHARE)
    planned = ring(
        schedule, devices=len(opened), workers=workers, memory=memory, device_memory=allowed
    )
    return Pipeline(opened, planned, allowed)


@dataclass(frozen=True, slots=True)
class _Block:
    """A block whose inputs will be on the device when its queue computes it."""

    step: Step
    parts: list[tuple[Region, list[Tensor]]]
    numbers: dict[Node, Tensor]

    def compute(self, results: list[Tensor], strange: list[Tensor], workspace: Tensor) -> None:
        """Compute into ``results`` (flat, of the step's result dtype); all is on the device.

        ``strange`` is for each as for ``round_there``; ``workspace`` (flat, uint8) holds registers.
        """
        arena = Arena.over(workspace, SPACING)
        dtype = torch_dtype(self.step.compute)
        for region, loaded in self.parts:
            windows, program = [region.window(result) for result in results], region.program
            computed = copy_results(program, loaded, windows)
            if not computed:
                continue

            def leave(result: int, value: Tensor, windows: list[Tensor] = windows) -> None:
                if value.shape == ():
                    windows[result].copy_(value)
                else:
                    round_there(windows[result], value, strange[result])

            # A device has no small cache to stay in: the whole region is one tile.
            sizes = sizes_of(region.box)
            arena.rewind()
            registers = [arena.take(prod(sizes), dtype) for _ in range(program.registers)]
            tile = tuple((0, size) for size in sizes)
            number = self.numbers.__getitem__
            evaluate(program, tile, loaded, registers, number, computed, leave)


class _Worker:
    """One thread: it reads into slots of its own and writes what comes back."""

    def __init__(
        self,
        lane: Lane,
        ring: Ring,
        work: Work,
        sinks: Sequence[Sink],
        reader: Reader,
        watch: Watch,
    ) -> None:
        self._lane = lane
        self._slots = Slots(lane, ring)
        self._whole_there = ring.whole_bytes > 0
        self._work = work
        self._sinks = sinks
        self._inputs = Inputs(reader, work.outcomes)
        self._scratch = torch.empty(SCRATCH, dtype=torch.uint8)
        self._watch = watch
        # Measured on the host: little is, and queues need not wait for it.
        memory = HostMemory(SCRATCH + ring.sample_bytes)
        self._sampler = BlockRunner(Arena(memory), reader, work.outcomes)

    def run(self) -> None:
        """Work until nothing is left or something failed; what was issued is done at the end."""
        try:
            torch.set_num_threads(1)
            start = {"write": self._write, "reduce": self._reduce, "whole": self._whole}
            # Whoever waited for work with blocks under way might wait for one of them.
            while True:
                task = self._work.next(wait=not self._slots.busy)
                if task is not None:
                    start[task.step.kind](task)
                elif self._slots.busy:
                    self._slots.deliver_one()
                else:
                    return
        except BaseException as error:  # handed to the thread that waits
            self._work.fail(error)
        finally:
            self._settle()

    def _settle(self) -> None:
        """Memory goes when this thread ends: nothing may be under way in it."""
        try:
            self._lane.settle()
        except BaseException as error:
            self._work.fail(error)

    def _write(self, task: Task) -> None:
        step, (start, stop) = task.step, span(task)
        slot = self._slots.take()
        if _is_copied(step):  # the device could only send the bytes back
            slot.arena.rewind()
            loaded = self._load(slot, step, next(regions(step, start, stop)))
            copies = [result.copy for result in step.pieces[0].program.results]
            self._deliver(task, [loaded[copy] for copy in copies if copy is not None], [], {})
            return
        block = self._read(slot, step, start, stop)
        size, dtype = (stop - start) * step.result.itemsize, torch_dtype(step.result)
        places = [slice(n * spaced(size), n * spaced(size) + size) for n in range(step.results)]
        flags = step.results * spaced(size)  # one for each result, after them
        end = flags + step.results
        results = [slot.result_there[place].view(dtype) for place in places]
        all_flags = slot.result_there[flags:end]
        strange = [_flag(all_flags[n : n + 1]) for n in range(step.results)]

        def compute() -> None:
            all_flags.zero_()
            block.compute(results, strange, self._lane.workspace)

        def arrived() -> None:
            blocks = [slot.result[place].view(dtype) for place in places]
            sums = self._measured(task, blocks)
            flagged = {n for n, flag in enumerate(slot.result[flags:end].tolist()) if flag}
            found: Strange = {}
            if flagged:
                data = [memory_of(values) for values in blocks]
                found = self._watch.examiner.look(task.state.tensor, start, data, flagged)
            self._deliver(task, blocks, sums, found)

        self._slots.issue(slot, compute, end, arrived)

    def _measured(self, task: Task, blocks: list[Tensor]) -> list[list[Sums]]:
        if self._watch.precision is None:
            return []
        return self._sampler.measure(task.state.tensor, *span(task), blocks)

    def _deliver(
        self, task: Task, blocks: list[Tensor], sums: list[list[Sums]], found: Strange
    ) -> None:
        """Hand a block's results, in the host's memory, to the sinks."""
        notes = self._watch.notes(task, span(task)[0], sums, found)
        for to, data, told in zip(task.state.tensor.destinations, blocks, notes, strict=True):
            self._sinks[to.model].write(to.tensor, task.first, memory_of(data), told)
        self._watch.done(task, *span(task), sums)
        self._work.done(task, None)

    def _reduce(self, task: Task) -> None:
        step, fold, chunk, (start, stop) = task.step, task.state.fold, task.first, span(task)
        assert fold is not None
        slot = self._slots.take()
        block = self._read(slot, step, start, stop)
        left, left_there = fold.shaped(chunk, slot.result), fold.shaped(chunk, slot.result_there)
        size, workspace = (stop - start) * step.result.itemsize, self._lane.workspace
        values = workspace[:size].view(torch_dtype(step.result))
        ignored = _flag(slot.result_there[-1:])

        def compute() -> None:
            block.compute([values], [ignored], workspace[spaced(size) :])
            left_there.copy_(fold.partial(chunk, values))

        def arrived() -> None:
            self._work.done(task, left.clone())

        self._slots.issue(slot, compute, left.numel() * left.itemsize, arrived)

    def _whole(self, task: Task) -> None:
        """All of a whole node; other blocks under way are delivered meanwhile."""
        step = task.step
        if self._whole_there:
            try:
                outcome = self._run_whole_there(step)
            except BaseException:
                self._lane.settle()  # before the matrix goes
                raise
        else:
            operand = torch.empty(step.operand.numel, dtype=torch_dtype(step.compute))
            for start, stop in _chunks(operand.numel()):
                slot = self._slots.take()
                block = self._read(slot, step, start, stop)
                compute = partial(block.compute, workspace=self._lane.workspace)
                self._bring(slot, compute, operand[start:stop])
            self._slots.deliver_all()
            outcome = run_whole(step.node, operand.view(step.operand.shape))
        self._work.done(task, outcome)

    def _run_whole_there(self, step: Step) -> Tensor:
        """The value of a whole node by way of the device, on the CPU."""
        dtype = torch_dtype(step.compute)
        size = step.operand.numel * dtype.itemsize
        matrix = self._lane.device.memory(size)[:size].view(dtype)
        for start, stop in _chunks(step.operand.numel):
            slot = self._slots.take()
            block = self._read(slot, step, start, stop)
            part, ignored = matrix[start:stop], _flag(slot.result_there[-1:])
            compute = partial(block.compute, [part], [ignored], self._lane.workspace)
            self._slots.issue(slot, compute, 0, _stays_there)
        found: list[Tensor] = []

        def run() -> None:
            found.append(run_whole(step.node, matrix.view(step.operand.shape)).reshape(-1))

        def copy_of(results: list[Tensor], _: list[Tensor], start: int, stop: int) -> None:
            results[0].copy_(found[0][start:stop])

        self._lane.computing.run(run)
        outcome = torch.empty(step.node.numel, dtype=dtype)
        for start, stop in _chunks(step.node.numel):
            slot = self._slots.take()
            slot.arena.rewind()
            self._bring(slot, partial(copy_of, start=start, stop=stop), outcome[start:stop])
        self._slots.deliver_all()
        return outcome.view(step.node.shape)

    def _bring(
        self, slot: Slot, compute: Callable[[list[Tensor], list[Tensor]], None], target: Tensor
    ) -> None:
        """Issue a block whose result (see ``_Block.compute``) goes to ``target`` on the host."""
        size = target.numel() * target.itemsize
        result = slot.result_there[:size].view(target.dtype)
        arrived = partial(copy, target, slot.result[:size].view(target.dtype))
        ignored = _flag(slot.result_there[-1:])
        self._slots.issue(slot, partial(compute, [result], [ignored]), size, arrived)

    def _read(self, slot: Slot, step: Step, start: int, stop: int) -> _Block:
        """Read all that elements ``start:stop`` of a step are computed from into a slot."""
        slot.arena.rewind()
        numbers: dict[Node, Tensor] = {}
        parts = []
        for region in regions(step, start, stop):
            loaded = [slot.there(view) for view in self._load(slot, step, region)]
            parts.append((region, loaded))
            for node in numbers_of(region.program):
                if node not in numbers:
                    # Beside the inputs, not as arguments from the host: on CUDA, dividing by such
                    # a number is multiplying by its reciprocal, which has other bits.
                    place = slot.arena.take(1, torch_dtype(step.compute)).view(())
                    numbers[node] = slot.there(place.copy_(self._inputs.scalar(node, step.compute)))
        return _Block(step, parts, numbers)

    def _load(self, slot: Slot, step: Step, region: Region) -> list[Tensor]:
        """A region's loads, in the slot's pinned memory."""
        return [
            self._inputs.load(load, step.compute, region, slot.arena, self._scratch)
            for load in region.program.loads
        ]


def _chunks(elements: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + CHUNK, elements)) for start in range(0, elements, CHUNK))


def _is_copied(step: Step) -> bool:
    """Whether every result of the step is, in flat ranges, what is stored as it is."""
    if len(step.pieces) != 1 or not step.pieces[0].program.flat:
        return False
    program = step.pieces[0].program
    held = [None if r.copy is None else holder(program.loads[r.copy].view) for r in program.results]
    return all(
        node is not None and node.op == "stored" and node.stored.dtype == step.result
        for node in held
    )


def _flag(byte: Tensor) -> Tensor:
    """One byte as a truth value of shape ()."""
    return byte.view(torch.bool).view(())


def _stays_there() -> None:
    """What a block leaves on the device is delivered to nobody."""
