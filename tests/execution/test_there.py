"""Operations in the form that accelerators need: the bits of the CPU's form, no waiting, bounded
temporaries. The stand-in device refuses whatever would make the host wait."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stand_in_device import ROLES, StandInDevice
from torch import Tensor

from mergeengine.compiler.ring import TEMPORARIES
from mergeengine.compiler.schedule import HISTOGRAM
from mergeengine.execution.kernels import round_into, round_there
from mergeengine.execution.reductions import Fold, fold_of
from mergeengine.lazy import algebra
from mergeengine.lazy.dtypes import BFLOAT16
from mergeengine.lazy.nodes import Node
from mergeengine.lazy.partition import CHUNK
from mergeengine.lazy.stored import Stored, StoredFile

NARROW = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
OUTPUTS = (*NARROW, torch.float32, torch.float64)


def there(values: Tensor, act: Callable[[Tensor, Tensor], None], out: Tensor) -> None:
    """Run ``act`` of ``values`` and of memory like ``out`` on a device; ``out`` is the result."""
    device = StandInDevice(frozenset(ROLES))
    queue = device.queue()
    source = device.memory(values.numel() * values.itemsize).view(values.dtype)
    target = device.memory(out.numel() * out.itemsize).view(out.dtype)

    def work() -> None:
        source.copy_(values)
        act(source, target)
        out.copy_(target)

    queue.run(work)


def wild(dtype: torch.dtype, count: int, seed: int = 0) -> Tensor:
    """Every pattern may come: numbers of all sizes, subnormal ones, infinities, NaNs."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype)


def as_bytes(values: Tensor) -> bytes:
    return values.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("compute", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", OUTPUTS, ids=str)
def test_rounding(dtype: torch.dtype, compute: torch.dtype) -> None:
    tame = torch.randn(70_001, generator=torch.Generator().manual_seed(1), dtype=compute)
    for values in (tame, wild(compute, 70_001), tame[:0]):
        expected, found = (
            torch.empty(values.shape, dtype=dtype),
            torch.empty(values.shape, dtype=dtype),
        )
        strange = torch.zeros(1, dtype=torch.bool)
        expected_strange = round_into(expected, values)
        there(
            values, lambda v, out: round_there(out, v, out.new_zeros((), dtype=torch.bool)), found
        )
        assert as_bytes(found) == as_bytes(expected)

        def flag(v: Tensor, out: Tensor, like: Tensor = expected) -> None:
            out.zero_()
            round_there(torch.empty_like(v, dtype=like.dtype), v, out.view(()))

        there(values, flag, strange)
        assert bool(strange) == expected_strange


REDUCED = algebra.stored(
    Stored("m", "x", BFLOAT16, (1001, 1300), StoredFile(Path("/nowhere"), 1 << 30), 0)
)


@pytest.mark.parametrize("compute", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [1, 77, 5000])
def test_magnitudes(k: int, compute: torch.dtype) -> None:
    """Each pass of the select: exact counts of digits, those of the CPU."""
    values = torch.randn(9001, generator=torch.Generator().manual_seed(k)).to(compute)
    values[::7] = values[0]
    folds = [fold_of(algebra.kth_magnitude(REDUCED, k)) for _ in range(2)]
    results: list[Tensor | None] = [None, None]
    while results[1] is None:
        counts = folds[0].partial(0, values.clone())
        found = torch.empty_like(counts)
        there(values, lambda v, out: _leave(folds[1], v, out), found)
        assert torch.equal(counts, found)
        for number, left in enumerate((counts, found)):
            folds[number].accept(0, left)
            results[number] = folds[number].finish_pass()
    expected = values.abs().sort(descending=True).values[k - 1]
    assert results[0] == results[1] == expected


def _leave(fold: Fold, values: Tensor, out: Tensor) -> None:
    out.copy_(fold.partial(0, values))


@pytest.mark.parametrize(
    "node",
    [algebra.total(REDUCED), algebra.row_sum(REDUCED), algebra.column_sum(REDUCED)],
    ids="src",
)
@pytest.mark.parametrize("chunk", [0, 1])
def test_sums(node: Node, chunk: int) -> None:
    size = min(CHUNK, REDUCED.numel - chunk * CHUNK)
    values = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(torch.float64)
    fold = fold_of(node)
    expected = fold.partial(chunk, values.clone())
    room = torch.zeros(1 << 20, dtype=torch.uint8)
    found = fold.shaped(chunk, room)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    there(values, lambda v, out: out.copy_(fold.partial(chunk, v).view(out.shape)), found.view(-1))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", OUTPUTS, ids=str)
def test_temporaries_of_rounding_are_bounded(dtype: torch.dtype) -> None:
    values, out = torch.randn(CHUNK, dtype=torch.float64), torch.empty(CHUNK, dtype=dtype)
    strange = torch.zeros((), dtype=torch.bool)
    there_peak = peak(lambda v: round_there(out, v, strange), values)
    assert CHUNK <= there_peak <= TEMPORARIES * CHUNK


@pytest.mark.parametrize(
    "node",
    [algebra.total(REDUCED), algebra.row_sum(REDUCED), algebra.column_sum(REDUCED)],
    ids="src",
)
def test_temporaries_of_sums_are_bounded(node: Node) -> None:
    values = torch.randn(CHUNK, dtype=torch.float64)
    assert peak(lambda v: fold_of(node).partial(0, v), values) <= TEMPORARIES * CHUNK


def test_temporaries_of_magnitudes_are_bounded() -> None:
    fold = fold_of(algebra.kth_magnitude(REDUCED, 5))
    values = torch.randn(CHUNK, dtype=torch.float64)
    fold.accept(0, fold.partial(0, values))
    fold.finish_pass()
    used = peak(lambda v: fold.partial(0, v), values)
    assert 8 * CHUNK <= used <= TEMPORARIES * CHUNK + 2 * HISTOGRAM


def peak(act: Callable[[Tensor], object], values: Tensor) -> int:
    """The most bytes that torch holds at a time for ``act`` of values on a device."""
    from stand_in_device import DeviceTensor, executing

    there = values.as_subclass(DeviceTensor)
    with executing(), torch.profiler.profile(profile_memory=True) as profile:
        act(there)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
