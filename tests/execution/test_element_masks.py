"""Element masks against a naive oracle: exact choices, for any dtypes, ties, blocks and devices."""

from collections.abc import Callable
from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schedules import Kept, scheduled
from stand_in_device import StandInDevice
from torch import Tensor

from mergeengine.compiler.graph import Graph, OutputTensor, compute_dtype
from mergeengine.compiler.ring import ring
from mergeengine.compiler.schedule import schedule
from mergeengine.execution.executor import execute
from mergeengine.execution.generated import uniform
from mergeengine.execution.kernels import TORCH_DTYPES
from mergeengine.execution.pipeline import Pipeline
from mergeengine.lazy import algebra
from mergeengine.lazy.dtypes import BFLOAT16, FLOAT32, FLOAT64, DType
from mergeengine.lazy.partition import CHUNK
from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.masking import masked, random_key, ranked
from mergeengine.values.actions import Above, Action, Drop, Ranked, RowRange, Rows, Sign, in_order

Store = Callable[[Tensor], LazyTensor]
GiB = 1 << 30
SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def values_of(
    value: LazyTensor, dtype: DType = FLOAT64, workers: int = 2, block: int | None = None
) -> Tensor:
    output = OutputTensor("x", dtype, compute_dtype(dtype), value.node)
    plan = schedule(Graph((output,)), memory=GiB, workers=workers, block_chunks=block)
    sink = Kept()
    execute(plan, sink)
    data = b"".join(part for _, part in sorted(sink.parts.items()))
    return torch.frombuffer(bytearray(data), dtype=TORCH_DTYPES[dtype.name]).view(value.shape)


def chosen(values: Tensor, count: int, end: str) -> Tensor:
    """The first ``count`` elements by magnitude, equal ones in flat order."""
    size = values.double().abs().nan_to_num(torch.inf, torch.inf).reshape(-1).numpy()
    order = np.argsort(-size if end == "top" else size, kind="stable")[:count]
    found = torch.zeros(size.size, dtype=torch.bool)
    found[torch.from_numpy(order)] = True
    return found.view(values.shape)


def splitmix(key: int, position: int) -> float:
    """The generator by its definition, with Python's integers."""
    mask = (1 << 64) - 1
    z = (key + (position + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 40) / 2**24


# --- ranks -------------------------------------------------------------------------------

NUMBERS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -3.0, 1e-3, np.inf, -np.inf, np.nan])
FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@settings(max_examples=120, suppress_health_check=SHARED)
@given(
    numbers=st.lists(NUMBERS, min_size=1, max_size=40),
    stored=st.sampled_from(FLOATS),
    dtype=st.sampled_from([FLOAT32, FLOAT64]),
    end=st.sampled_from(["top", "bottom"]),
    data=st.data(),
)
def test_the_largest_and_smallest(
    numbers: list[float],
    stored: torch.dtype,
    dtype: DType,
    end: str,
    data: st.DataObject,
    store: Store,
) -> None:
    shape = data.draw(st.sampled_from([(len(numbers),), (1, len(numbers)), (len(numbers), 1)]))
    count = data.draw(st.integers(1, len(numbers)))
    values = torch.tensor(numbers, dtype=stored).view(shape)
    found = values_of(ranked(store(values), count, end), dtype)
    assert torch.equal(found.bool(), chosen(values, count, end))


@pytest.mark.parametrize("end", ["top", "bottom"])
@pytest.mark.parametrize("share", [1e-6, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("levels", [1, 3, 200])
def test_ties_across_chunks(levels: int, share: float, end: str, store: Store) -> None:
    generator = torch.Generator().manual_seed(levels)
    values = torch.randint(-levels, levels + 1, (3, CHUNK - 7), generator=generator).float()
    count = max(1, int(share * values.numel()))
    value = ranked(store(values.to(torch.bfloat16)), count, end)
    expected = chosen(values.to(torch.bfloat16), count, end)
    for workers, block in ((1, 1), (3, 2)):
        assert torch.equal(values_of(value, FLOAT32, workers, block).bool(), expected)


def test_a_scalar_and_parts(store: Store) -> None:
    assert values_of(ranked(store(torch.tensor(3.0)), 1, "top")) == 1.0
    values = torch.randn(40, 30)
    value = ranked(store(values), 100, "top")
    expected = chosen(values, 100, "top").double()
    for found, wanted in (
        (value[3:17, 5:], expected[3:17, 5:]),
        (value.permute(1, 0), expected.T),
        (value.take([5, -1, 2, 3]), torch.stack([expected[5], expected[5] * 0, *expected[2:4]])),
    ):
        assert torch.equal(values_of(found), wanted)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32], ids=str)
def test_a_threshold_inside_a_sum(dtype: DType, store: Store) -> None:
    """The sum is taken in float64, and so are the magnitudes that choose its terms, whatever the
    arithmetic outside of it is."""
    one, other = (torch.randn(1100, 1000).to(torch.bfloat16) for _ in range(2))
    delta = store(one) / 3.0 - store(other)
    largest = ranked(delta, 5000, "top")
    energy = (largest * delta * delta).sum()
    exact = one.double() / 3.0 - other.double()
    kept = torch.where(chosen(exact, 5000, "top"), exact, 0.0)
    found = values_of(energy * 1e-4 + store(other) * 0.0, dtype).double()
    assert torch.allclose(found, (kept * kept).sum() * 1e-4, rtol=2.0**-8)
    # The same threshold outside: that of the arithmetic there.
    both = values_of(largest * 2.0 + energy * 0.0, dtype)
    assert int((both == 2.0).sum()) == 5000


def test_a_matrix_of_low_rank_inside_a_sum(store: Store) -> None:
    values = torch.randn(40, 30)
    value = store(values).low_rank(3)
    found = values_of(value.norm() + store(values) * 0.0, BFLOAT16).double()
    assert torch.allclose(found, torch.linalg.svdvals(values.double())[:3].norm(), rtol=2.0**-8)


def test_of_hundredths_as_many_as_written() -> None:
    counts = [Ranked("top", n / 100).count(100) for n in range(1, 101)]
    assert counts == list(range(1, 101))
    assert Ranked("bottom", 0.2).count(3) == 1


# --- chance ------------------------------------------------------------------------------


@given(key=st.integers(0, 2**64 - 1), position=st.integers(0, 2**45))
def test_random_numbers_are_those_of_the_definition(key: int, position: int) -> None:
    positions = torch.tensor([position])
    assert float(uniform(key, positions)) == splitmix(key, position)
    assert positions.tolist() == [position]


def test_random_numbers_are_even_and_unlike() -> None:
    positions = torch.arange(1 << 20)
    one, other = (uniform(random_key(0, "a", "source", name), positions) for name in ("v", "w"))
    for values in (one, other):
        counts = torch.histc(values, 64, 0, 1)
        assert float(((counts - 16384) ** 2 / 16384).sum()) < 120  # chi square, 63 degrees
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.005
    assert abs(float(torch.corrcoef(torch.stack([one[1:], one[:-1]]))[0, 1])) < 0.005


def test_a_random_tensor_depends_on_positions_alone() -> None:
    value = LazyTensor(algebra.random(77, (3, CHUNK // 2 + 5)))
    expected = uniform(77, torch.arange(value.node.numel)).view(value.shape)
    for workers, block in ((1, 1), (3, 2)):
        assert torch.equal(values_of(value, FLOAT32, workers, block), expected)
    assert torch.equal(values_of(value[1:, 7:19], FLOAT32), expected[1:, 7:19])
    assert torch.equal(values_of(value.permute(1, 0), FLOAT32), expected.T)


# --- all of them -------------------------------------------------------------------------

ACTIONS: list[Action] = [
    Rows("rows", (RowRange(1, 2), RowRange(5, None), RowRange(2, 3))),
    Above(0.5),
    Ranked("top", 0.3),
    Ranked("bottom", 0.7),
    Sign(),
    Sign("other"),
    Drop(0.4),
]


def naive(delta: Tensor, action: Action, shift: Tensor, other: Tensor, key: int) -> Tensor:
    match action:
        case Rows():
            keep = torch.zeros(delta.shape, dtype=torch.bool)
            for each in action.ranges:
                keep[each.first : None if each.last is None else each.last + 1] = True
        case Above():
            keep = delta.abs() > action.limit
        case Ranked():
            keep = chosen(delta, action.count(delta.numel()), action.key)
        case Sign():
            against = shift if action.of is None else other
            keep = ((delta > 0) & (against > 0)) | ((delta < 0) & (against < 0))
        case Drop():
            limit = ceil(action.probability * 2**24) / 2**24
            keep = (uniform(key, torch.arange(delta.numel())) >= limit).view(delta.shape)
    return torch.where(keep, delta, 0.0)


@settings(max_examples=60, suppress_health_check=SHARED)
@given(
    actions=st.lists(st.sampled_from(ACTIONS), max_size=4),
    stored=st.sampled_from(FLOATS),
    shape=st.sampled_from([(7,), (9, 5), (6, 1, 4), (40, 33)]),
    seed=st.integers(0, 1 << 20),
)
def test_any_actions(
    actions: list[Action], stored: torch.dtype, shape: tuple[int, ...], seed: int, store: Store
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Few distinct values, so that there are ties and zeros.
    delta, shift, other = (
        (torch.randint(-4, 5, shape, generator=generator) / 4).to(stored) for _ in range(3)
    )
    key = random_key(seed, "s", "source", "w")
    applied = in_order(actions, ())
    value = masked(
        store(delta) * 1.0,
        applied,
        shift=store(shift) * 1.0,
        others={"other": store(other) * 1.0},
        stored=lambda mask: store(shift),
        key=lambda level: key,
        zero=0.0,
    )
    expected = delta.double()
    for each in applied:
        expected = naive(expected, each.action, shift.double(), other.double(), key)
    assert torch.equal(values_of(value), expected)


def every_mask(t: LazyTensor, f: LazyTensor, b: LazyTensor) -> LazyTensor:
    delta = masked(
        f - b,
        in_order([*ACTIONS[1:3], *ACTIONS[4:5], ACTIONS[6]], [Rows("rows", (RowRange(3, None),))]),
        shift=t - b,
        others={},
        stored=lambda mask: t,
        key=lambda level: 5,
        zero=-0.0,
    )
    return t + 0.7 * delta


def test_accelerators_give_the_same_bytes(store: Store) -> None:
    """Also in a slot's and a device's projected memory."""
    leaves = [store(torch.randn(1300, 901).to(torch.bfloat16)) for _ in range(3)]
    plan = scheduled([every_mask(*leaves)], FLOAT32)
    cpu, there = Kept(), Kept()
    execute(plan, cpu)
    device = StandInDevice(seed=1)
    planned = ring(plan, devices=1, workers=2, memory=GiB, device_memory=GiB)
    execute(plan, there, pipeline=Pipeline((device,), planned, GiB))
    assert cpu.parts == there.parts


def test_a_chunk_without_the_place_is_not_read_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergeengine.execution.reductions import _KthPlace

    looked: list[int] = []
    partial = _KthPlace.partial

    def counted(fold: _KthPlace, chunk: int, values: Tensor) -> Tensor:
        looked.append(chunk)
        return partial(fold, chunk, values)

    monkeypatch.setattr(_KthPlace, "partial", counted)
    value = ranked(store(torch.ones(4, CHUNK)), CHUNK + 5, "top")
    assert int(values_of(value, FLOAT32).sum()) == CHUNK + 5
    assert sorted(looked) == [0, 1, 1, 2, 3]


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize(
    "action",
    [Above(0.5), Above(9.0), Ranked("top", 0.4), Ranked("bottom", 0.2), Sign(), Sign("other")],
)
def test_what_is_not_a_number_is_found_later(action: Action, dtype: DType, store: Store) -> None:
    delta = torch.tensor([1.0, torch.nan, -0.25, 0.0, -torch.nan, 2.0, -3.0, 0.5, 0.75, 1.5])
    shift = torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0, -2.0, torch.nan, 0.0, 1.0, -1.0])
    plain = torch.where(delta.isnan(), 0.0, delta)
    keep = naive(delta, action, shift, shift, 0) != 0
    value = masked(
        store(delta),
        in_order([action], ()),
        shift=store(shift),
        others={"other": store(shift)},
        stored=lambda _: pytest.fail("no file"),
        key=lambda _: 0,
        zero=0.0,
    )
    expected = torch.where(delta.isnan(), torch.nan, torch.where(keep, plain, 0.0))
    found = values_of(value, dtype).float()
    assert torch.equal(found.nan_to_num(77.0), expected.nan_to_num(77.0))
