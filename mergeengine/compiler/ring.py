"""What accelerators hold and how many blocks are under way: a projection beside the schedule's.

A worker of an accelerator owns a ring of slots. A slot is one block under way: pinned host memory
for what is read and for the result, and the same on the device. What the arithmetic needs beyond
that (registers, the operands of reductions, torch's temporaries) is there once on each device,
since one queue computes there, block after block:

    device ≤ workers there · slots · (input + result) + workspace + temporaries + a whole node
    host   ≤ workers · (slots · (pinned input + pinned result) + scratch + sample) + held + fixed
"""

from dataclasses import dataclass

from mergeengine.compiler.program import Apply, Program, Scalar
from mergeengine.compiler.schedule import (
    COMFORTABLE,
    FIXED,
    HISTOGRAM,
    SCRATCH,
    Schedule,
    Step,
    factor_bytes,
    itemsize,
    rows_of_blocks,
    whole_workspace,
)
from mergeengine.errors import ResourceError
from mergeengine.lazy.nodes import Node
from mergeengine.lazy.partition import CHUNK
from mergeengine.units import format_binary_size

SLOTS = 2  # one is read into, or handed to the sink, while the other is on the device
SPACING = 256  # bytes: parts of a slot begin at multiples, as kernels on devices like it
TEMPORARIES = 48  # bytes an element: rounding from float64, or ranking magnitudes, at its worst


@dataclass(frozen=True, slots=True)
class Ring:
    """How accelerators run a schedule. Sizes in bytes; ``workers`` are spread over ``devices``.

    ``input_bytes`` and ``result_bytes`` are those of a slot. Once on each device are
    ``workspace_bytes``, allocated beforehand, ``temporary_bytes``, which torch allocates, and
    ``whole_bytes``, what whole nodes take; 0 where the CPU computes them. ``sample_bytes`` and the
    scratch are a worker's for measuring on the host what rounding lost.
    """

    devices: int
    workers: int
    slots: int
    input_bytes: int
    result_bytes: int
    workspace_bytes: int
    temporary_bytes: int
    whole_bytes: int
    held_bytes: int
    sample_bytes: int = 0

    @property
    def pinned_bytes(self) -> int:
        """Pinned host memory of all slots."""
        slot = pinned(self.input_bytes) + pinned(self.result_bytes)
        return self.workers * self.slots * slot

    @property
    def projected_bytes(self) -> int:
        """Peak host memory beyond the imports, the driver's own apart."""
        worker = 2 * SCRATCH + self.sample_bytes + HISTOGRAM
        return self.pinned_bytes + self.workers * worker + self.held_bytes + FIXED

    @property
    def device_bytes(self) -> int:
        """Peak memory on each device, the driver's own apart."""
        slots = -(-self.workers // self.devices) * self.slots
        once = self.workspace_bytes + self.temporary_bytes + self.whole_bytes
        return slots * (self.input_bytes + self.result_bytes) + once


def ring(
    schedule: Schedule, *, devices: int, workers: int, memory: int, device_memory: int
) -> Ring:
    """At most ``workers`` workers (one a device at least) in ``memory`` bytes of the host and
    ``device_memory`` bytes of each device.

    Whole nodes go to the device where they fit, since a worker is one thread of the CPU. Raises
    ResourceError where not even one block on each device fits.
    """
    steps = [step for tensor in schedule.tensors for step in tensor.steps]
    block = schedule.block_chunks * CHUNK
    whole = max((whole_workspace(step) for step in steps if step.kind == "whole"), default=0)

    def of(count: int, slots: int, whole_bytes: int) -> Ring:
        return Ring(
            devices=devices,
            workers=count,
            slots=slots,
            input_bytes=inputs,
            result_bytes=results,
            workspace_bytes=workspace,
            temporary_bytes=temporary,
            whole_bytes=whole_bytes,
            held_bytes=schedule.held_bytes + count * factors,
            sample_bytes=sample,
        )

    inputs = max((_input_bytes(step, block) for step in steps), default=0)
    results = max((_result_bytes(step, block) for step in steps), default=0)
    workspace = max((_workspace_bytes(step, block) for step in steps), default=0)
    sample = max((step.sample_bytes for step in steps if step.kind == "write"), default=0)
    temporary = max((_temporary_bytes(step, block) for step in steps), default=0)
    factors = max((_factor_bytes(step, block) for step in steps), default=0)
    least = of(devices, 1, 0)
    choices = [of(count, SLOTS, 0) for count in range(max(workers, devices), devices - 1, -1)]
    for found in (*choices, least):
        if (
            found.projected_bytes <= memory
            and found.device_bytes <= device_memory
            and (found.pinned_bytes <= COMFORTABLE * devices or found.workers == devices)
        ):
            fits = found.device_bytes + whole <= device_memory
            return of(found.workers, found.slots, whole if fits else 0)
    for needed, allowed, place, option in (
        (least.projected_bytes, memory, "of memory", "--memory"),
        (least.device_bytes, device_memory, "on each device", "--device-memory"),
    ):
        if needed > allowed:
            raise ResourceError(
                f"this plan needs at least {-(-needed >> 20)} MiB {place} to run on "
                f"{devices} accelerator{'s' if devices > 1 else ''}, and "
                f"{format_binary_size(allowed)} were allowed: raise {option}, or use --device cpu"
            )
    raise AssertionError("unreachable")


def pinned(size: int) -> int:
    """Bytes that torch takes for ``size`` bytes of pinned memory: the next power of two."""
    return 1 << max(0, size - 1).bit_length()


def spaced(size: int) -> int:
    """Bytes that a part of ``size`` bytes takes up in a slot."""
    return -(-size // SPACING) * SPACING


def numbers_of(program: Program) -> tuple[Node, ...]:
    """The numbers that a program uses, each once."""
    operands = [o for i in program.instructions if isinstance(i, Apply) for o in i.operands]
    scalars = [
        o.node for o in (*operands, *(r.value for r in program.results)) if isinstance(o, Scalar)
    ]
    return tuple(dict.fromkeys(scalars))


def _input_bytes(step: Step, block: int) -> int:
    """All loads of a block side by side, whatever boxes it falls into, and its numbers."""
    elements = step.block_elements(block)
    programs = [piece.program for piece in step.pieces]
    flat = len(programs) == 1 and programs[0].flat
    boxes = 1 if flat else max(1, 2 * len(step.operand.shape) - 1)
    sizes = [[itemsize(load.view, step.compute) for load in p.loads] for p in programs]
    by_element = max((sum(each) for each in sizes), default=0) * elements
    # A view that is broadcast is smaller than the block.
    by_view = sum(
        min(elements, boxes * load.view.numel) * size
        for program, each in zip(programs, sizes, strict=True)
        for load, size in zip(program.loads, each, strict=True)
    )
    parts = boxes * sum(len(program.loads) for program in programs)
    numbers = sum(len(numbers_of(program)) for program in programs)
    return min(by_element, by_view) + SPACING * (parts + numbers)


def _factor_bytes(step: Step, block: int) -> int:
    """What products are made of, in ordinary memory of the host."""
    elements = step.block_elements(block)
    views = [load.view for piece in step.pieces for load in piece.program.loads]
    return max((factor_bytes(view, elements) for view in views), default=0)


def _result_bytes(step: Step, block: int) -> int:
    """What comes back of a block: results with a flag each, or what a reduction's chunk leaves."""
    elements = step.block_elements(block)
    if step.kind != "reduce":
        return step.results * spaced(elements * step.result.itemsize) + spaced(step.results)
    left = {
        "sum": 8,
        "row_sum": 8 * (min(step.node.numel, elements) + 2),
        "column_sum": 8 * step.node.numel,
        "block_max": 8 * rows_of_blocks(step.node, elements) if step.node.op == "block_max" else 0,
        "kth_magnitude": HISTOGRAM,
        "kth_place": 16,
        "derived": 8,  # nothing: it takes no pass
    }[step.node.op]
    return spaced(left) + SPACING


def _workspace_bytes(step: Step, block: int) -> int:
    elements = step.block_elements(block)
    registers = max((piece.program.registers for piece in step.pieces), default=0)
    held = registers * spaced(elements * step.compute.itemsize)
    if step.kind == "reduce":
        held += spaced(elements * step.result.itemsize)
    return held


def _temporary_bytes(step: Step, block: int) -> int:
    return TEMPORARIES * step.block_elements(block) + 2 * HISTOGRAM
