"""Infinities and NaN in what was computed: which elements, what brought them, and what to do.

Whoever computes a block knows whether it holds such values at no cost. Only then is it looked at
again here: the block's inputs are read once more, element beside element. This is slow, and needs
neither memory to speak of nor, where everything is flat, torch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from mergeengine.compiler.program import holder, prerequisites
from mergeengine.compiler.sample import starts_step
from mergeengine.compiler.schedule import SCRATCH, Destination, Step, TensorSchedule
from mergeengine.errors import MergeEngineError
from mergeengine.execution.loop_program import sources_of
from mergeengine.execution.memory import HostMemory
from mergeengine.execution.reader import Reader
from mergeengine.execution.work import Outcomes
from mergeengine.lazy.dtypes import DType
from mergeengine.lazy.nodes import Node, walk
from mergeengine.lazy.partition import CHUNK
from mergeengine.lazy.stored import Stored
from mergeengine.plan.plan import OnNonfinite

if TYPE_CHECKING:
    from mergeengine.execution.inputs import Region

_STRIP = 1 << 16  # elements that are looked at at a time

# The bits that are all ones in infinities and NaN, by dtype.
_EXPONENTS = {
    "bfloat16": ("u2", 0x7F80),
    "float16": ("u2", 0x7C00),
    "float32": ("u4", 0x7F800000),
    "float64": ("u8", 0x7FF0000000000000),
    "float8_e4m3fn": ("u1", 0x7F),  # NaN; there are no infinities
    "float8_e5m2": ("u1", 0x7C),
}


class Input(NamedTuple):
    """A tensor as it is stored: the reference of its checkpoint, and its name there."""

    source: str
    tensor: str


@dataclass(frozen=True, slots=True)
class NotFinite:
    """Elements of an output tensor that were computed and are infinities or NaN.

    ``first`` is the flat position of the first one. ``inputs`` are tensors that hold such values
    in the same places (or of scales, for those places); ``spread``: one or more hold them
    elsewhere, and a norm, a sum or a matrix product brought them here. ``overflowed``: some of the
    elements come of finite inputs alone, and left the range of the dtype.
    """

    tensor: str
    dtype: DType
    shape: tuple[int, ...]
    count: int
    first: int
    inputs: frozenset[Input]
    spread: frozenset[Input]
    overflowed: bool

    def and_also(self, other: "NotFinite") -> "NotFinite":
        """The same of two parts of a tensor."""
        return NotFinite(
            self.tensor,
            self.dtype,
            self.shape,
            self.count + other.count,
            min(self.first, other.first),
            self.inputs | other.inputs,
            self.spread | other.spread,
            self.overflowed or other.overflowed,
        )


@dataclass(slots=True)
class Guard:
    """What a model does about such values, and those in it, by the tensor's number.

    ``refuse`` makes the error of a finding: with ``error`` of the first one, with ``keep_target``
    (the second argument is true) of elements that have no finite value to keep.
    """

    on_nonfinite: OnNonfinite = "allow"
    refuse: Callable[[NotFinite, bool], MergeEngineError] = field(
        default=lambda found, kept: MergeEngineError(str(found))
    )
    found: dict[int, NotFinite] = field(default_factory=dict)
    _known: set[tuple[int, int]] = field(default_factory=set)

    def add(self, tensor: int, chunk: int, finding: NotFinite) -> None:
        """Take the finding of a chunk; one that is made again is counted once."""
        if (tensor, chunk) not in self._known:
            self._known.add((tensor, chunk))
            known = self.found.get(tensor)
            self.found[tensor] = finding if known is None else known.and_also(finding)


class Examiner:
    """Looks closer at blocks that hold such values; ``guards`` are the models', in order."""

    def __init__(self, guards: Sequence[Guard], reader: Reader, outcomes: Outcomes) -> None:
        self._guards = guards
        self._reader = reader
        self._outcomes = outcomes
        self._lock = Lock()  # one block at a time: its memory is in no projection
        self._bad_anywhere: dict[Stored, bool] = {}

    @property
    def guards(self) -> Sequence[Guard]:
        return self._guards

    def look(
        self, tensor: TensorSchedule, start: int, results: Sequence[memoryview], strange: set[int]
    ) -> dict[int, dict[int, NotFinite]]:
        """Examine those of a block's ``results`` that are ``strange``; ``start`` is its first
        element. What is found, by result and chunk. With ``keep_target`` the target's values are
        put into them.

        Raises what the guard of a model makes of it.
        """
        size = CHUNK * tensor.write.result.itemsize
        found: dict[int, dict[int, NotFinite]] = {}
        with self._lock:
            for number in sorted(strange):
                for chunk, at in enumerate(range(0, len(results[number]), size), start // CHUNK):
                    part = results[number][at : at + size]
                    finding = self._examine(tensor, number, chunk * CHUNK, part)
                    if finding is not None:
                        found.setdefault(number, {})[chunk] = finding
            for number, findings in found.items():
                to = tensor.destinations[number]
                for chunk, finding in findings.items():
                    self._guards[to.model].add(to.tensor, chunk, finding)
        return found

    def _examine(
        self, tensor: TensorSchedule, number: int, start: int, data: memoryview
    ) -> NotFinite | None:
        """The finding of one chunk."""
        import numpy

        step, to = tensor.write, tensor.destinations[number]
        guard = self._guards[to.model]
        kind, _ = _EXPONENTS[step.result.name]
        bits = numpy.frombuffer(data, dtype=kind)
        finding: NotFinite | None = None
        lacking: NotFinite | None = None
        for low in range(0, len(bits), _STRIP):
            part = bits[low : low + _STRIP]
            bad = _not_finite(part, step.result)
            if not bad.any():
                continue
            here = self._explained(tensor, to, start + low, bad)
            finding = here if finding is None else finding.and_also(here)
            if guard.on_nonfinite == "keep_target":
                kept = self._starts(tensor, number, start + low, start + low + len(part))
                part[bad] = kept[bad]
                left = _not_finite(part, step.result)
                if left.any():
                    here = self._explained(tensor, to, start + low, left)
                    lacking = here if lacking is None else lacking.and_also(here)
        if finding is None:
            return None
        self._reader.check_unchanged()  # what is being overwritten holds anything
        if guard.on_nonfinite == "error":
            raise guard.refuse(finding, False)
        if lacking is not None:
            raise guard.refuse(lacking, True)
        return finding

    def _explained(
        self, tensor: TensorSchedule, to: Destination, start: int, bad: Any
    ) -> NotFinite:
        """What brought the elements ``bad`` (a truth value each) from ``start`` on."""
        below = {node.stored for node in walk(to.output.node) if node.op == "stored"}
        brought, inputs = bad & False, set()
        for stored, where in self._loaded(tensor.write, start, start + len(bad)):
            where = where & bad
            if stored in below and where.any():
                inputs.add(Input(stored.source, stored.name))
                brought |= where
        unexplained = bool((bad & ~brought).any())
        spread = self._spread(to) if unexplained else frozenset()
        return NotFinite(
            tensor=to.output.name,
            dtype=to.output.dtype,
            shape=to.output.shape,
            count=int(bad.sum()),
            first=start + int(bad.argmax()),
            inputs=frozenset(inputs),
            spread=spread,
            overflowed=unexplained and not spread,
        )

    def _spread(self, to: Destination) -> frozenset[Input]:
        """The inputs of matrix products, and of earlier passes that left something not finite,
        that hold such values anywhere."""
        spreading = [node for node in walk(to.output.node) if node.op == "product"]
        for node, compute in prerequisites(to.output.compute, to.output.node):
            outcome = self._outcomes.get((node, compute.name))
            if outcome is None:
                continue
            flat = outcome.view(-1)
            strips = (flat[at : at + _STRIP] for at in range(0, len(flat), _STRIP))
            if not all(bool(strip.isfinite().all()) for strip in strips):  # no copy of it whole
                spreading.append(node)
        leaves = {leaf.stored for leaf in walk(*spreading) if leaf.op == "stored"}
        return frozenset(Input(each.source, each.name) for each in leaves if self._has_bad(each))

    def _has_bad(self, stored: Stored) -> bool:
        if stored not in self._bad_anywhere:
            strips = (
                self._raw(stored, at, min(at + _STRIP, stored.numel))
                for at in range(0, stored.numel, _STRIP)
            )
            self._bad_anywhere[stored] = stored.dtype.name in _EXPONENTS and any(
                _not_finite(strip, stored.dtype).any() for strip in strips
            )
        return self._bad_anywhere[stored]

    def _raw(self, stored: Stored, start: int, stop: int) -> Any:
        """Elements of a stored tensor (flat), as bits."""
        import numpy

        size = stored.dtype.itemsize
        data = bytearray((stop - start) * size)
        self._reader.read_into(stored.file, stored.offset + start * size, memoryview(data))
        return numpy.frombuffer(data, dtype=_EXPONENTS[stored.dtype.name][0])

    def _loaded(self, step: Step, start: int, stop: int) -> Iterator[tuple[Stored, Any]]:
        """For each stored tensor that elements ``start:stop`` are computed from, where it holds
        infinities or NaN."""
        flat = sources_of(step)
        if flat is not None:
            for stored, first in flat:
                if stored.dtype.name in _EXPONENTS:
                    values = self._raw(stored, first + start, first + stop)
                    yield stored, _not_finite(values, stored.dtype)
            return
        import torch

        for region, inputs in self._regions(step, start, stop):
            for load in region.program.loads:
                held = holder(load.view)
                if held.op != "stored" or held.stored.dtype.name not in _EXPONENTS:
                    continue
                where = torch.zeros(stop - start, dtype=torch.bool)
                values = inputs(load.view)
                region.window(where).copy_(values.to(torch.float64).isfinite().logical_not())
                yield held.stored, where.numpy()

    def _starts(self, tensor: TensorSchedule, number: int, start: int, stop: int) -> Any:
        """The values that a result is a sum upon, in its dtype, as bits; NaN where it is no sum."""
        import torch

        from mergeengine.execution.arena import Arena
        from mergeengine.execution.blocks import BlockRunner

        step = starts_step(tensor, number)
        arena = Arena(HostMemory(step.arena_bytes(_STRIP)))
        (kept,) = BlockRunner(arena, self._reader, self._outcomes).run(step, start, stop)
        return kept.view(torch.uint8).numpy().view(_EXPONENTS[step.result.name][0])

    def _regions(
        self, step: Step, start: int, stop: int
    ) -> "Iterator[tuple[Region, Callable[[Node], Any]]]":
        """The regions of a range, and what gives the part of a view in each (valid until the next
        is asked for)."""
        import torch

        from mergeengine.compiler.program import Load, Register
        from mergeengine.execution.arena import Arena
        from mergeengine.execution.inputs import Inputs, regions

        largest = max(
            (load.view for piece in step.pieces for load in piece.program.loads),
            key=lambda view: view.numel,
        )
        arena = Arena(HostMemory(SCRATCH + 8 * min(stop - start, largest.numel) + 2 * 4096))
        scratch = arena.take(SCRATCH, torch.uint8)
        mark = arena.mark()
        loader: Inputs = Inputs(self._reader, self._outcomes)
        for region in regions(step, start, stop):

            def values(view: Node, region: "Region" = region) -> Any:
                arena.rewind(mark)
                return loader.load(Load(Register(0), view), step.compute, region, arena, scratch)

            yield region, values


def _not_finite(bits: Any, dtype: DType) -> Any:
    """Which elements are infinities or NaN, of values as bits."""
    mask = bits.dtype.type(_EXPONENTS[dtype.name][1])
    return (bits & mask) == mask
