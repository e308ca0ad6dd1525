"""What rounding lost: the same figures from the loop, from torch and by way of a device, and those
of a naive computation."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergeengine.compiler.graph import Graph, OutputTensor, compute_dtype
from mergeengine.compiler.schedule import schedule
from mergeengine.execution import native
from mergeengine.execution.executor import execute
from mergeengine.execution.precision import Loss, Precision, error_of
from mergeengine.lazy.dtypes import BY_NAME, FLOAT16
from mergeengine.lazy.partition import CHUNK, SAMPLE
from mergeengine.lazy.tensor import LazyTensor, concat
from tests.compiled_loop import needs_loop
from tests.execution.schedules import Kept, blocks
from tests.execution.test_fused import leaf, random_bits

Store = Callable[[torch.Tensor], LazyTensor]
FLOATS = ("bfloat16", "float16", "float32", "float64")
Expression = Callable[[LazyTensor, LazyTensor, LazyTensor], LazyTensor]
SUMS: dict[str, Expression] = {
    "transfer": lambda t, b, f: t + (f - b),
    "scaled": lambda t, b, f: t + 0.3 * (f - b),
    "two": lambda t, b, f: t + 0.3 * (f - b) + 1.7 * (b - t),
    "masked": lambda t, b, f: t + (abs(f - b) > 0.5).where(f - b, -0.0),
    "upon what is computed": lambda t, b, f: (t * 0.5 - b) + 0.3 * (f - b) + 0.1 * (t * 0.5 - b),
    "upon what was rounded": lambda t, b, f: (t + 0.1 * b).round_to(FLOAT16) + 0.3 * (f - b),
    "upon a sum": lambda t, b, f: (t + 0.1 * b) + 0.3 * (f - b),
}
LAYOUTS: dict[str, Expression] = {
    "permuted": lambda t, b, f: t.permute(1, 0) + 0.3 * (f.permute(1, 0) - b.permute(1, 0)),
    "rows of the target alone": lambda t, b, f: t + concat([(f - b)[:3], (f - b)[3:] * 0.0]),
    "rows of another": lambda t, b, f: concat([t + 0.7 * (f - b), f[:5]]),
    "bounded by norms": lambda t, b, f: t + (f - b) * (500.0 / (f - b).norm()),
    "upon 8 bits and scales": lambda t, b, f: (
        t * blocks(b, 4, 100).repeat([4, 100], t.shape) + 0.3 * (f - b)
    ),
    "joined, upon 8 bits and scales": lambda t, b, f: concat(
        [t * blocks(b, 4, 100).repeat([4, 100], t.shape) + 0.3 * (f - b), f[:7]]
    ),
    "one column": lambda t, b, f: t + 0.3 * (f - b[:, :1]),
}


# What the sums above are upon, where that is not what is stored.
UPON: dict[str, Expression] = {
    "upon what is computed": lambda t, b, f: t * 0.5 - b,
    "upon what was rounded": lambda t, b, f: (t + 0.1 * b).round_to(FLOAT16),
    "upon a sum": lambda t, b, f: t + 0.1 * b,
    "upon 8 bits and scales": lambda t, b, f: t * blocks(b, 4, 100).repeat([4, 100], t.shape),
    "joined, upon 8 bits and scales": lambda t, b, f: concat(
        [t * blocks(b, 4, 100).repeat([4, 100], t.shape), t[:7] * 2.0]
    ),
}


def summed(
    name: str, leaves: Sequence[LazyTensor], dtype: str, compute: str = "auto"
) -> OutputTensor:
    made = output((SUMS | LAYOUTS)[name](*leaves), dtype, compute)
    return replace(made, target=UPON[name](*leaves).node) if name in UPON else made


def measured(
    tensors: list[OutputTensor],
    *,
    workers: int = 1,
    block_chunks: int | None = None,
    together: bool = False,
) -> list[list[Loss]]:
    """The losses of tensors of one model, or of models of one tensor each."""
    graphs = [Graph((each,)) for each in tensors] if together else [Graph(tuple(tensors))]
    planned = schedule(*graphs, memory=1 << 30, workers=workers, block_chunks=block_chunks)
    precision = Precision(planned)
    execute(planned, *(Kept() for _ in graphs), precision=precision)
    return [precision.of(model) for model in range(len(graphs))]


def output(value: LazyTensor, dtype: str, compute: str = "auto") -> OutputTensor:
    wanted = BY_NAME[dtype]
    return OutputTensor("out", wanted, compute_dtype(wanted, compute), value.node)


def expected(out: torch.Tensor, exact: torch.Tensor, start: torch.Tensor) -> tuple[float, float]:
    """The sums of squares of the first elements of every chunk, by NumPy."""
    parts = [values.reshape(-1).to(torch.float64).numpy() for values in (out, exact, start)]
    sampled = [
        np.concatenate([part[at : at + SAMPLE] for at in range(0, part.size, CHUNK)])
        for part in parts
    ]
    lost, added = sampled[0] - sampled[1], sampled[1] - sampled[2]
    return float(np.sum(lost**2)), float(np.sum(added**2))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(7,), (300, 20), (2 * CHUNK + 100,), (1500, 1100)])
def test_the_figures_are_those_of_whole_tensors_in_memory(
    dtype: str, shape: tuple[int, ...], store: Store
) -> None:
    generator = torch.Generator().manual_seed(5)
    kind = torch.float64 if dtype == "float64" else torch.float32
    t, b, f = (torch.randn(shape, generator=generator, dtype=kind) for _ in range(3))
    f = b + 0.01 * f
    compute = torch.float32 if dtype in ("bfloat16", "float16") else torch.float64
    exact = t.to(compute) + (f.to(compute) - b.to(compute)) * torch.tensor(0.7, dtype=compute)
    ((found,),) = measured([output(store(t) + 0.7 * (store(f) - store(b)), dtype)])
    lost, added = expected(exact.to(getattr(torch, dtype)), exact, t)
    assert found.lost == pytest.approx(lost, rel=1e-12)
    assert found.added == pytest.approx(added, rel=1e-12)
    error = error_of(found.lost, found.added)
    low, high = {"bfloat16": (0.1, 0.3), "float16": (0.01, 0.1)}.get(dtype, (0, 1e-5))
    assert error is not None
    assert low <= error <= high


@needs_loop
@pytest.mark.parametrize("level", range(3))
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    names=st.lists(st.sampled_from(sorted(SUMS)), min_size=1, max_size=3),
    inputs=st.tuples(*[st.sampled_from(FLOATS)] * 3),
    dtype=st.sampled_from(FLOATS),
    compute=st.sampled_from(["auto", "float32", "float64"]),
    count=st.sampled_from([1, 5, 2047, 2049, 40_000]),
    seed=st.integers(0, 100),
    wild=st.booleans(),
)
def test_the_loop_and_torch_find_the_same(
    level: int,
    names: list[str],
    inputs: tuple[str, str, str],
    dtype: str,
    compute: str,
    count: int,
    seed: int,
    wild: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = native.library()
    assert loop is not None
    if level > native.Library(loop.path).level:
        pytest.skip("this processor does not have these instructions")
    generator = torch.Generator().manual_seed(seed)
    leaves = [
        leaf(
            tmp_path / f"{seed}-{number}",
            kind,
            (count,),
            random_bits(kind, count, 3 * seed + number)
            if wild
            else torch.randn(count, generator=generator, dtype=torch.float64),
        )
        for number, kind in enumerate(inputs)
    ]
    tensors = [summed(name, leaves, dtype, compute) for name in names]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "level", level)
        ours = measured(tensors, together=True)
    with monkeypatch.context() as patch:
        patch.setenv(native.SWITCH, "0")
        theirs = measured(tensors, together=True)
    assert repr(ours) == repr(theirs)  # as text: infinite squares are equal, NaN would be too
    if not wild:
        assert all(isfinite(loss.lost) for (loss,) in ours)


@pytest.mark.parametrize("loop", ["0", "1"])
@pytest.mark.parametrize("name", [*SUMS, *LAYOUTS])
def test_the_figures_do_not_depend_on_workers_and_blocks(
    name: str, loop: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(native.SWITCH, loop)
    generator = torch.Generator().manual_seed(2)
    leaves = [
        store(torch.randn(1300, 1700, generator=generator).to(torch.bfloat16)) for _ in range(3)
    ]
    tensors = [summed(name, leaves, "bfloat16")]
    found = {
        repr(measured(tensors, workers=workers, block_chunks=chunks))
        for workers, chunks in ((1, 1), (2, 1), (2, 3))
    }
    assert len(found) == 1
    ((loss,),) = measured(tensors)
    error = error_of(loss.lost, loss.added)
    assert error is not None
    assert 0 < error < 0.5


def test_rows_that_are_only_copied_count_nothing(store: Store) -> None:
    t, b, f = (torch.randn(40, 30) for _ in range(3))
    joined = concat([store(t) + 0.7 * (store(f) - store(b)), store(f)])
    ((loss,),) = measured([output(joined, "bfloat16")])
    exact = t.double() + 0.7 * (f.double() - b.double())
    assert loss.added == pytest.approx(float(((exact - t.double()) ** 2).sum()), rel=1e-5)


def test_what_is_no_sum_is_not_measured(store: Store) -> None:
    t, f = store(torch.randn(40, 30)), store(torch.randn(40, 30))
    tensors = [output(value, "bfloat16") for value in (t, t * 0.5, t - f, t * 0.0 + 3.0)]
    assert measured(tensors) == [[]]


def test_elements_that_are_not_finite_are_left_out(store: Store) -> None:
    t, b, f = (torch.randn(300) for _ in range(3))
    f[7], t[9] = float("nan"), float("inf")
    ((loss,),) = measured([output(store(t) + (store(f) - store(b)), "bfloat16")])
    some = [n for n in range(300) if n not in (7, 9)]
    added = ((f.double() - b.double())[some] ** 2).sum()
    assert loss.added == pytest.approx(float(added), rel=1e-5)


def test_nothing_added_is_no_error() -> None:
    assert error_of(0.0, 0.0) is None
    assert error_of(float("inf"), 1.0) is None
    assert error_of(1.0, 4.0) == 0.5
