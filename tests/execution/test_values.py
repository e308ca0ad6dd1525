"""Expressions of every kind against the naive oracle, for any blocks and workers."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive import oracle
from torch import Tensor

from mergeengine.compiler import schedule as schedule_module
from mergeengine.compiler.graph import Graph, OutputTensor, compute_dtype
from mergeengine.compiler.schedule import schedule
from mergeengine.execution import native
from mergeengine.execution.executor import execute, stream
from mergeengine.execution.kernels import TORCH_DTYPES
from mergeengine.execution.reader import Reader
from mergeengine.lazy.dtypes import BFLOAT16, FLOAT32, FLOAT64, DType
from mergeengine.lazy.partition import CHUNK
from mergeengine.lazy.tensor import LazyTensor, concat

Store = Callable[[Tensor], LazyTensor]


class Memory:
    """A sink that keeps everything, and checks that nothing comes twice."""

    def __init__(self, values: list[LazyTensor], dtype: DType) -> None:
        self.flat = [torch.zeros(v.node.numel, dtype=TORCH_DTYPES[dtype.name]) for v in values]
        self.seen: set[tuple[int, int]] = set()

    def is_done(self, tensor: int, chunk: int) -> bool:
        return False

    def write(self, tensor: int, first_chunk: int, data: memoryview, notes: Sequence[str]) -> None:
        assert (tensor, first_chunk) not in self.seen
        self.seen.add((tensor, first_chunk))
        if len(data):
            values = torch.frombuffer(bytearray(data), dtype=self.flat[tensor].dtype)
            start = first_chunk * CHUNK
            self.flat[tensor][start : start + values.numel()] = values


def computed(
    *values: LazyTensor, dtype: DType = FLOAT64, workers: int = 2, block: int | None = None
) -> list[Tensor]:
    tensors = (
        OutputTensor(str(i), dtype, compute_dtype(dtype), v.node) for i, v in enumerate(values)
    )
    sink = Memory(list(values), dtype)
    plan = schedule(Graph(tuple(tensors)), memory=1 << 30, workers=workers, block_chunks=block)
    execute(plan, sink)
    return [flat.view(value.shape) for flat, value in zip(sink.flat, values, strict=True)]


def test_transfer_is_exact_in_float64(store: Store) -> None:
    target, ft, base = (store(torch.randn(70, 30)) for _ in range(3))
    merged = target + 0.7 * (ft - base)
    assert torch.equal(computed(merged)[0], oracle(merged.node))


EXPRESSIONS: dict[str, Callable[[list[LazyTensor]], LazyTensor]] = {
    "plain": lambda t: t[0] + 0.7 * (t[1] - t[2]),
    "shared": lambda t: (t[0] - t[1]) * (t[0] - t[1]) + (t[0] - t[1]),
    "permuted": lambda t: t[0] + 0.5 * t[3].permute(1, 0),
    "part": lambda t: t[0][5:600, 3:500] - t[1][6:601, 100:597],
    "rows": lambda t: t[0] + 0.3 * t[1].take([5, 6, 7, -1] * 400),
    "columns": lambda t: t[0].take(list(range(899, -1, -1)), 1) - t[1],
    "joined": lambda t: concat([t[0], t[1][:5], t[2]]) * 2.0 + 0.5,
    "beside": lambda t: concat([t[0], t[3].permute(1, 0)], 1) - 1.0,
    "padded": lambda t: concat([t[0] - t[1], t[2][:0] * 0.0, t[1][:3] * 0.0]),
    "normalised": lambda t: t[0] * (0.5 / t[0].norm()) + t[1],
    "per row": lambda t: t[0] / (t[1] * t[1]).row_sum().sqrt(),
    "per column": lambda t: t[0] - concat([t[1], t[2]]).column_sum() / 3200.0,
    "per column, in columns": lambda t: t[0] - t[3].permute(1, 0).column_sum(),
    "column means below": lambda t: concat([t[0], t[1].column_sum().repeat([9, 1], (9, 900))]) - 1,
    "largest": lambda t: (abs(t[0] - t[1]) >= (t[0] - t[1]).kth_magnitude(5000)).where(t[1], 0.0),
    "signs": lambda t: t[0].sign() * t[1].minimum(0.5).maximum(-0.25),
    "compared": lambda t: (t[0] > t[1]).where(t[0], -t[1]) + t[2].eq(t[2]),
    "zero": lambda t: (t[0] * 0.0) + 3.0,
    "repeated": lambda t: t[0] * t[1][:13, :8].repeat([128, 128], (1600, 900)),
    "part of repeated": lambda t: (t[0] * t[1][:13, :8].repeat([128, 128], (1600, 900)))[5:, 130:],
    "product": lambda t: t[0] + 0.5 * (t[1][:, :40] @ t[2][:40]),
    "product turned": lambda t: (
        t[3] - (t[1][:, :5] @ t[2][:5]).permute(1, 0)[1:].take([0, *range(899)])
    ),
    "unstacked": lambda t: concat([t[0].unsqueeze(), t[1].unsqueeze()])[1:].squeeze() - t[2],
    "nested": lambda t: t[0] * ((t[1] - t[1].sum() / float(t[1].node.numel)).norm() / t[2].norm()),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_kind_of_node(name: str, store: Store) -> None:
    # More than one chunk, and rows that no chunk border falls between.
    leaves = [store(torch.randn(1600, 900).to(torch.bfloat16)) for _ in range(3)]
    leaves.append(store(torch.randn(900, 1600)))
    value = EXPRESSIONS[name](leaves)
    expected = oracle(value.node)
    results = [
        computed(value, workers=1, block=1)[0],
        computed(value, workers=3, block=2)[0],
        computed(value, workers=2, block=4)[0],
    ]
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert torch.allclose(results[0], expected, rtol=1e-12, atol=1e-12)


def test_low_rank_is_the_truncated_svd(store: Store) -> None:
    value = store(torch.randn(300, 200)).low_rank(7) + 1.0
    assert torch.allclose(computed(value)[0], oracle(value.node), atol=1e-9)


def test_a_reduction_may_be_the_output_itself(store: Store) -> None:
    leaf = store(torch.randn(1500, 900))
    total, rows, kth = computed(leaf.sum(), leaf.row_sum(), leaf.kth_magnitude(3))
    assert torch.allclose(total, oracle(leaf.node).sum(), rtol=1e-12)
    assert torch.allclose(rows, oracle(leaf.node).sum(1, keepdim=True), rtol=1e-12, atol=1e-12)
    assert kth == oracle(leaf.node).abs().flatten().topk(3).values[-1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_kth_magnitude_is_exact(dtype: torch.dtype, store: Store, data: st.DataObject) -> None:
    numbers = data.draw(
        st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=40), label="numbers"
    )
    k = data.draw(st.integers(1, len(numbers)))
    leaf = store(torch.tensor(numbers, dtype=dtype))
    (found,) = computed(leaf.kth_magnitude(k))
    assert found == oracle(leaf.node).abs().sort(descending=True).values[k - 1]


def test_scalars_empty_and_three_dimensional_tensors(store: Store) -> None:
    scalar, empty = store(torch.tensor(2.5)), store(torch.zeros(0, 7))
    cube = store(torch.randn(5, 6, 7))
    values = (
        scalar + 1.0,
        empty + 1.0,
        cube.permute(2, 0, 1) * scalar,
        cube[1:3, 2:5, :] - 1.0,
        cube.take([4, -1, 0], 1),
    )
    for found, value in zip(computed(*values), values, strict=True):
        assert torch.equal(found, oracle(value.node))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_part_of_repeated_blocks_and_products(store: Store, data: st.DataObject) -> None:
    def size(name: str, most: int = 9) -> int:
        return data.draw(st.integers(1, most), label=name)

    shape = size("experts", 3), size("rows"), size("columns")
    factors = [size("factor", 4) for _ in shape]
    few = store(torch.randn([-(-n // f) for n, f in zip(shape, factors, strict=True)]))
    ranks = size("ranks", 70)
    left, right = (
        store(torch.randn(*shape[:2], ranks)),
        store(torch.randn(shape[0], ranks, shape[2])),
    )
    orders = {"plain": (0, 1, 2), "turned": (0, 2, 1)}
    value = few.repeat(factors, shape) + left @ right
    value = value.permute(*orders[data.draw(st.sampled_from(sorted(orders)))])
    value = value[
        tuple(
            slice(low, data.draw(st.integers(low, n)))
            for n in value.shape
            for low in [data.draw(st.integers(0, n - 1))]
        )
    ]
    if value.shape[1]:
        value = value.take(data.draw(st.lists(st.integers(-1, value.shape[1] - 1), min_size=1)), 1)
    if value.shape[0] == 1:
        value = value.squeeze()
    (found,) = computed(value)
    assert torch.allclose(found, oracle(value.node), rtol=1e-12, atol=1e-12)


def test_blocks_in_this_thread_are_the_same(store: Store) -> None:
    a, b = store(torch.randn(1500, 1000)), store(torch.randn(1500, 1000).to(torch.bfloat16))
    value = a + 0.5 * (b - b.norm() / 1000.0)
    graph = Graph((OutputTensor("x", BFLOAT16, compute_dtype(BFLOAT16), value.node),))
    plan = schedule(graph, memory=1 << 30, workers=1)
    with Reader() as reader:
        parts = [(start, values.clone()) for _, start, values in stream(plan, reader)]
    assert [start for start, _ in parts] == sorted(start for start, _ in parts)
    flat = torch.cat([values for _, values in parts])
    assert torch.equal(flat.view(1500, 1000), computed(value, dtype=BFLOAT16)[0])


def test_nothing_is_computed_where_bytes_are_copied(store: Store) -> None:
    nan = torch.tensor([0x7F81, 0xFFC3, 0x8000, 0x0001], dtype=torch.uint16).view(torch.bfloat16)
    (copied,) = computed(store(nan), dtype=BFLOAT16)
    assert copied.view(torch.uint16).tolist() == [0x7F81, 0xFFC3, 0x8000, 0x0001]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_layouts(store: Store, data: st.DataObject) -> None:
    """Any chain of layout and arithmetic on small tensors is what torch makes of it."""
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3), label="shape"))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    leaves = [store(torch.randn(shape, generator=generator)) for _ in range(2)]
    value = leaves[0]
    for _ in range(data.draw(st.integers(1, 6), label="steps")):
        rank = len(value.shape)
        step = data.draw(st.sampled_from(["slice", "permute", "take", "concat", "add", "scale"]))
        if step == "slice":
            bounds = []
            for size in value.shape:
                low = data.draw(st.integers(0, size - 1))
                bounds.append(slice(low, data.draw(st.integers(low + 1, size))))
            value = value[tuple(bounds)]
        elif step == "permute":
            value = value.permute(*data.draw(st.permutations(range(rank))))
        elif step == "take":
            dimension = data.draw(st.integers(0, rank - 1))
            rows = st.lists(st.integers(-1, value.shape[dimension] - 1), min_size=1, max_size=7)
            value = value.take(data.draw(rows), dimension)
        elif step == "concat":
            value = concat([value, value * 2.0], data.draw(st.integers(0, rank - 1)))
        elif step == "add" and value.shape == leaves[1].shape:
            value = value + leaves[1]
        else:
            value = value * -0.5
    assert torch.equal(computed(value, dtype=FLOAT32)[0], oracle(value.node).to(torch.float32))


def test_sums_of_rows_without_elements(store: Store) -> None:
    for shape in ((3, 0), (0, 3), (0, 0)):
        a = store(torch.zeros(shape))
        assert torch.equal(computed(a.row_sum())[0].flatten(), torch.zeros(shape[0]).double())
        assert torch.equal(computed(a.column_sum())[0], torch.zeros(1, shape[1]).double())


def test_of_two_zeros_the_positive_one_wherever_they_lie(store: Store) -> None:
    positive, negative = store(torch.zeros(37)), store(-torch.zeros(37))
    for a, b in ((positive, negative), (negative, positive)):
        for values in computed(a.maximum(b), a.minimum(b)):
            assert not torch.signbit(values).any()


@pytest.mark.parametrize("switch", ["1", "0"])
@pytest.mark.parametrize("name", sorted(EXPRESSIONS))
def test_many_loads_are_loaded_in_strips(
    name: str, switch: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for little, expressions give the same values in less memory."""
    monkeypatch.setenv(native.SWITCH, switch)
    leaves = [store(torch.randn(1600, 900).to(torch.bfloat16)) for _ in range(3)]
    leaves.append(store(torch.randn(900, 1600)))
    value = EXPRESSIONS[name](leaves)
    (whole,) = computed(value)
    monkeypatch.setattr(schedule_module, "LOADED", 1 << 18)
    (in_strips,) = computed(value)
    assert torch.equal(whole.view(torch.int64), in_strips.view(torch.int64))
