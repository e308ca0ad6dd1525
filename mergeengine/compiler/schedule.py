"""Passes, block size and the projected peak memory.

The projection is a promise: what a worker holds is one arena, whose layout is fixed here, and
the executor allocates exactly that. Per worker, for a block of ``B`` elements (whole chunks):

    Σ S · itemsize of each load  +  Σ B · itemsize of each output
    + registers · TILE · itemsize of the arithmetic  +  scratch

where ``S`` is ``B``, or less where the loads of a block would take more than ``LOADED``.
A reduction's worker holds one chunk of its operand instead of the output, and for magnitudes a
histogram. Row sums of the outputs under way are held, and whole nodes, which run alone and declare
their workspace. Arithmetic happens tile by tile
inside a block, so that intermediate values stay in the processor's cache.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from mergeengine.compiler.alike import Programs
from mergeengine.compiler.graph import Graph, OutputTensor
from mergeengine.compiler.program import VIEWS, Piece, arithmetic_of, grid, holder, prerequisites
from mergeengine.compiler.transfer import Transfers, transfers
from mergeengine.errors import ResourceError
from mergeengine.lazy.dtypes import FLOAT64, DType
from mergeengine.lazy.nodes import GENERATED, Node
from mergeengine.lazy.partition import CHUNK, SAMPLE, chunk_count
from mergeengine.lazy.stored import RemotePath, Stored
from mergeengine.units import format_binary_size

TILE = 1 << 18  # smaller: calls cost more than the arithmetic; larger: out of the cache
PATCH = 1 << 16  # the unit of operations that need several temporaries
ALIGNMENT = 4096
RANKS = 32  # of the factors of a product that are in memory at a time
SCRATCH = 1 << 20  # gathers short rows of strided views
LOADED = 48 << 20  # most bytes of one worker's loads; merges of a few sources have less
LEAST_STRIP, MOST_STRIP = 1 << 12, 1 << 24
ROUNDING = 4 << 20  # temporaries of one tile: conditions, rounding from float64, histograms
HISTOGRAM = 1 << 19
FIXED = 40 << 20  # interpreter, allocator and thread stacks beyond the imports
PER_TENSOR = 3584  # names, journal and manifest of one output tensor
PER_LOAD = 1280  # headers, nodes and instructions of one of its inputs
PER_INDEX = 128  # of a row that is gathered: the number, and what planning leaves behind
PER_STEP = 1536  # a pass before the one that writes: nodes that need its result, too
DERIVED = 192  # lists of Python's floats, an element of each input of a derived node
LOOKAHEAD = 32  # outputs under way at once, so that passes of one hide the waits of another
COMFORTABLE = 128 << 20  # more than this for blocks was never measured to be faster
MOST_CHUNKS = 1  # larger blocks were not faster, warm or cold
_KEPT_UNTIL_WRITTEN = ("row_sum", "column_sum", "block_max", "derived")
MOST_RESULTS = 16  # outputs made of one reading: each takes memory of a block


@dataclass(frozen=True, slots=True)
class Step:
    """One pass over one tensor: a reduction or whole node that leaves a value, or the outputs.

    ``compute`` is the arithmetic's dtype and ``result`` the dtype of the values produced. A pass
    that writes makes ``results`` tensors of one shape at once; ``node`` is the first of them.
    """

    kind: Literal["reduce", "whole", "write"]
    node: Node
    compute: DType
    result: DType
    pieces: tuple[Piece, ...]
    results: int = 1

    @property
    def operand(self) -> Node:
        """The expression that the pass evaluates, block by block."""
        return self.node if self.kind == "write" else self.node.inputs[0]

    @property
    def chunks(self) -> int:
        return chunk_count(self.operand.numel)

    def reads(self) -> list[tuple[Stored, int]]:
        """The stored tensors that are read, and how many bytes of each."""
        loads = [load.view for piece in self.pieces for load in piece.program.loads]
        return [read for view in loads for read in stored_reads(view)]

    def load_bytes(self, elements: int) -> int:
        """Bytes of all loads for a block of that many elements, each aligned and with room to be
        moved inside a page (see ``execution.arena.apart``)."""
        return max(
            [
                sum(
                    [
                        align(min(elements, load.view.numel) * itemsize(load.view, self.compute))
                        + ALIGNMENT
                        + factor_bytes(load.view, elements)
                        for load in piece.program.loads
                    ]
                )
                for piece in self.pieces
            ],
            default=0,
        )

    def result_bytes(self, elements: int) -> int:
        """Bytes of all results of a block of that many elements, each aligned."""
        return self.results * (align(elements * self.result.itemsize) + ALIGNMENT)

    def block_elements(self, block: int) -> int:
        """Elements of this pass's largest block: a reduction goes chunk by chunk."""
        most = block if self.kind == "write" else CHUNK
        return min(most, max(1, self.operand.numel))

    @property
    def strip(self) -> int:
        """Most elements that are loaded at a time: a block, unless there are very many loads."""
        elements = MOST_STRIP
        while elements > LEAST_STRIP and self.load_bytes(elements) > LOADED:
            elements //= 2
        return elements

    def arena_bytes(self, block: int) -> int:
        """What one worker holds during this pass, for blocks of ``block`` elements."""
        elements = self.block_elements(block)
        strip, loaded = elements, self.load_bytes(elements)
        if loaded > LOADED:
            strip = min(elements, self.strip)
            loaded = self.load_bytes(strip)
        held = self.result_bytes(elements) + SCRATCH
        if self.node.op == "row_sum":  # the sums of one chunk's rows, twice
            held += 16 * min(self.node.numel, elements)
        if self.node.op == "column_sum":  # sums of one chunk, and those that wait for their turn
            held += 24 * self.node.numel
        if self.node.op == "block_max":  # maxima of each row, and where they belong
            held += 32 * rows_of_blocks(self.node, elements)
        return held + loaded + max(self._registers(min(TILE, strip)), self._sample_bytes(strip))

    @property
    def sample_bytes(self) -> int:
        """What a worker holds while it measures the rounding of a chunk's sample (with torch)."""
        strip = min(SAMPLE, max(1, self.operand.numel), self.strip)
        held = self._sample_bytes(strip)
        return held + self.load_bytes(strip) if held else 0

    def _sample_bytes(self, strip: int) -> int:
        """The same without loads: of each result the exact values and those it is a sum upon."""
        results = [result for piece in self.pieces for result in piece.program.results]
        if self.kind != "write" or [r.start for r in results].count(None) == len(results):
            return 0
        elements = min(SAMPLE, self.node.numel)
        values = 2 * self.results * align(elements * self.compute.itemsize)
        return values + self._registers(min(elements, strip))

    def is_sum(self, result: int) -> bool:
        """Whether a result is a sum upon a tensor, as a target with deltas is, in any piece."""
        return any(piece.program.results[result].start is not None for piece in self.pieces)

    def _registers(self, elements: int) -> int:
        count = max((piece.program.registers for piece in self.pieces), default=0)
        return count * align(elements * self.compute.itemsize)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a result goes: tensor number ``tensor`` of model number ``model``."""

    model: int
    tensor: int
    output: OutputTensor


@dataclass(frozen=True, slots=True)
class TensorSchedule:
    """One output tensor, or the same one of several models: the passes that must come first,
    then the one that writes a result to each destination."""

    destinations: tuple[Destination, ...]
    before: tuple[Step, ...]
    write: Step

    @property
    def steps(self) -> tuple[Step, ...]:
        return (*self.before, self.write)


@dataclass(frozen=True, slots=True)
class Schedule:
    """What will be done, in order, and the most memory it will take.

    Sizes in bytes. ``block_chunks`` is the number of canonical chunks of a block. ``transfers`` is
    what is read over a network.
    """

    tensors: tuple[TensorSchedule, ...]
    workers: int
    block_chunks: int
    arena_bytes: int
    held_bytes: int
    read_bytes: int
    write_bytes: int
    transfers: Transfers | None = None

    def remote_bytes(self) -> dict[str, int]:
        """Bytes that are read of each remote model, by its reference; as often as they are."""
        found: Counter[str] = Counter()
        for tensor in self.tensors:
            for step in tensor.steps:
                for stored, size in step.reads():
                    if stored.file.is_remote:
                        found[stored.source] += size
        return dict(sorted(found.items()))

    @property
    def projected_bytes(self) -> int:
        """Peak anonymous memory beyond the imports."""
        return projected_bytes(self.workers, self.arena_bytes, self.held_bytes)


def projected_bytes(workers: int, arena: int, held: int) -> int:
    """``held``: what is there once, whatever the number of workers."""
    return workers * (arena + ROUNDING + HISTOGRAM) + held + FIXED


def schedule(
    *graphs: Graph, memory: int, workers: int, block_chunks: int | None = None
) -> Schedule:
    """Passes, block size and at most ``workers`` workers for a budget of ``memory`` bytes.

    With several graphs, which make the same tensors in different ways, inputs are read once for
    up to ``MOST_RESULTS`` of them.
    Raises ResourceError where even one worker with the smallest blocks does not fit; see
    ``smallest`` for what would. ``block_chunks`` fixes the block size (for measurements).
    """
    programs = Programs()
    tensors = tuple(
        [
            _tensor_schedule(group, programs)
            for number, same in enumerate(zip(*(graph.tensors for graph in graphs), strict=True))
            for group in _groups(number, same)
        ]
    )
    steps = [step for tensor in tensors for step in tensor.steps]
    held = _whole_bytes(tensors) + _row_sum_bytes(tensors) + _bookkeeping_bytes(tensors)
    held += max((_derived_bytes(step) for step in steps), default=0)

    def arena(chunks: int) -> int:
        return max((step.arena_bytes(chunks * CHUNK) for step in steps), default=SCRATCH)

    choices = [block_chunks] if block_chunks else list(range(MOST_CHUNKS, 0, -1))
    arenas = {chunks: arena(chunks) for chunks in choices}
    spare = memory - projected_bytes(1, arenas[choices[-1]], held)
    read, far = 0, list[Stored]()
    for step in steps:
        reads = step.reads()
        read += sum([size for _, size in reads])
        far += [stored for stored, _ in reads if isinstance(stored.file.path, RemotePath)]
    remote = transfers(far, min(spare, memory // 3), max(1, workers))
    if remote is not None:
        held, workers = held + remote.memory_bytes, remote.workers
    least = 1, choices[-1]
    count, chunks = next(
        (
            (count, chunks)
            for count in range(max(1, workers), 0, -1)
            for chunks in choices
            if count * arenas[chunks] <= COMFORTABLE
            and projected_bytes(count, arenas[chunks], held) <= memory
        ),
        least,
    )
    needed = projected_bytes(count, arenas[chunks], held)
    if needed > memory:
        raise ResourceError(
            f"this plan needs at least {-(-needed >> 20)} MiB of memory, and "
            f"{format_binary_size(memory)} were allowed: raise --memory"
        )
    return Schedule(
        tensors=tensors,
        workers=count,
        block_chunks=chunks,
        arena_bytes=arenas[chunks],
        held_bytes=held,
        read_bytes=read,
        write_bytes=sum(tensor.nbytes for graph in graphs for tensor in graph.tensors),
        transfers=remote,
    )


def _groups(number: int, tensors: tuple[OutputTensor, ...]) -> Iterator[list[Destination]]:
    """A tensor's ways of being made that one program can compute together."""
    if len(tensors) == 1:
        yield [Destination(0, number, tensors[0])]
        return
    alike: dict[object, list[Destination]] = {}
    for model, tensor in enumerate(tensors):
        key = tensor.dtype, tensor.compute, grid(tensor.node)
        alike.setdefault(key, []).append(Destination(model, number, tensor))
    for group in alike.values():
        yield from (group[i : i + MOST_RESULTS] for i in range(0, len(group), MOST_RESULTS))


def _tensor_schedule(destinations: list[Destination], programs: Programs) -> TensorSchedule:
    first, nodes = destinations[0].output, [each.output.node for each in destinations]
    before = []
    for node, compute in prerequisites(first.compute, *nodes):
        kind: Literal["reduce", "whole"] = "reduce" if node.kind == "reduction" else "whole"
        before.append(Step(kind, node, compute, compute, programs.pieces(node.inputs[0])))
    pieces = programs.pieces(*nodes, targets=[each.output.target for each in destinations])
    write = Step("write", first.node, first.compute, first.dtype, pieces, len(nodes))
    return TensorSchedule(tuple(destinations), tuple(before), write)


def _whole_bytes(tensors: tuple[TensorSchedule, ...]) -> int:
    """Whole nodes run one output at a time; a result that several outputs share is kept."""
    users = Counter(
        (step.node, step.compute)
        for tensor in tensors
        for step in tensor.before
        if step.kind == "whole"
    )
    sizes: dict[tuple[Node, DType], int] = {}
    most = 0
    for tensor in tensors:
        own = workspace = 0
        for step in tensor.before:
            if step.kind == "whole":
                size = step.node.numel * step.compute.itemsize
                workspace = max(workspace, whole_workspace(step))
                key = step.node, step.compute
                if users[key] > 1:
                    sizes[key] = size
                else:
                    own += size
        most = max(most, own + workspace)
    return most + sum(sizes.values())


def _row_sum_bytes(tensors: tuple[TensorSchedule, ...]) -> int:
    """Row sums are kept until their outputs are written; so many outputs are under way at once."""
    sizes = [
        sum(step.node.numel for step in tensor.before if step.node.op in _KEPT_UNTIL_WRITTEN)
        for tensor in tensors
    ]
    return FLOAT64.itemsize * sum(sorted(sizes)[-LOOKAHEAD:])


def _derived_bytes(step: Step) -> int:
    """What Python's numbers take while row sums are made of others; one pass at a time does so."""
    if step.node.op != "derived":
        return 0
    return DERIVED * len(step.node.inputs) * step.node.numel


def _bookkeeping_bytes(tensors: tuple[TensorSchedule, ...]) -> int:
    loads = sum(
        len(piece.program.loads)
        for tensor in tensors
        for step in tensor.steps
        for piece in step.pieces
    )
    outputs = sum(len(tensor.destinations) for tensor in tensors)
    steps = sum(len(tensor.before) for tensor in tensors)
    indices = _index_count(tensors) * PER_INDEX
    return outputs * PER_TENSOR + steps * PER_STEP + loads * PER_LOAD + indices


def _index_count(tensors: tuple[TensorSchedule, ...]) -> int:
    """Indices of rows that are gathered; tensors of equal vocabulary share theirs."""
    counts: dict[int, int] = {}
    for tensor in tensors:
        for step in tensor.steps:
            for piece in step.pieces:
                for load in piece.program.loads:
                    view = load.view
                    while view.op in VIEWS:
                        if view.op == "take":
                            counts[id(view.attributes[1])] = len(view.attributes[1])
                        view = view.inputs[0]
    return sum(counts.values())


def whole_workspace(step: Step) -> int:
    """Bytes that a whole node takes while it runs: its operand and the decomposition's factors.

    Of several matrices together: the vectors kept of each, and then the decomposition of those.
    """
    if step.node.op == "row_rank":  # sorted, with places twice; a few rows at a time
        sorted_at_once = max(step.node.shape[-1], 2 * PATCH)
        return step.operand.numel * step.compute.itemsize + 48 * sorted_at_once
    rows, columns = step.node.shape
    rank = min(rows, columns)
    factors = 2 * (rows * columns + rank * (rows + columns)) + 3 * rank * rank
    if step.node.op == "joint_low_rank":
        count: int = step.node.attributes[0]
        longer = max(rows, columns)
        joint = count * max(1, rank // count)  # vectors in all
        least = min(longer, joint)
        decomposed = 2 * (longer * joint + least * (longer + joint)) + 3 * least * least
        factors = max(factors, decomposed) + 3 * joint * (rows + columns) + rows * columns
    return (prod(step.operand.shape) + factors) * step.compute.itemsize


def itemsize(view: Node, compute: DType) -> int:
    """Bytes of an element of a view where it lies."""
    held = holder(view)
    if held.op == "stored":
        return held.stored.dtype.itemsize
    if held.op in GENERATED:
        return GENERATED[held.op].itemsize
    return arithmetic_of(held, compute).itemsize


def rows_of_blocks(node: Node, elements: int) -> int:
    """Maxima that a ``block_max`` keeps of so many elements: of every row that they touch."""
    return (elements // node.inputs[0].shape[-1] + 2) * node.shape[-1]


def stored_reads(view: Node) -> list[tuple[Stored, int]]:
    """What a view is read from, and how many bytes of each."""
    if view.op in ("repeat", "product"):  # what they are made of may be much smaller
        return [read for part in view.inputs for read in stored_reads(part)]
    held = holder(view)
    return [(held.stored, view.numel * held.stored.dtype.itemsize)] if held.op == "stored" else []


def factor_bytes(view: Node, elements: int) -> int:
    """Bytes that the factors of a product take beside a block of it: as stored, and converted."""
    if view.op != "product":
        return 0
    left, right = view.inputs
    rows, columns = left.numel // left.shape[-1], view.shape[-1]
    ranks = min(left.shape[-1], RANKS)
    touched = min(rows, elements // columns + 2)
    return ranks * (touched + right.numel // right.shape[-2]) * 2 * FLOAT64.itemsize + align(1)


def align(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
