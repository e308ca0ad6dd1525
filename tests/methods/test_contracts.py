"""What every registered method is held to, whatever it computes."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import ORACLES
from torch import Tensor

from mergeengine.compiler.graph import Graph, OutputTensor, compute_dtype
from mergeengine.compiler.schedule import schedule
from mergeengine.execution.executor import execute
from mergeengine.execution.kernels import TORCH_DTYPES
from mergeengine.lazy.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, DType
from mergeengine.lazy.partition import CHUNK
from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.registry import Method, Term, made, methods
from mergeengine.values.parameters import Number
from tests.execution.schedules import Kept

Store = Callable[[Tensor], LazyTensor]
SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

METHODS = list(methods().values())
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
SPECTRAL = ("iso_c", "tsv")  # their bits are those of one LAPACK
NAMED = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)

NAUGHT = {"density", "select_topk", "lambda", "t", "depth_scale"}


def among(choose: Callable[[Method], bool]) -> pytest.MarkDecorator:
    """A test of the methods that ``choose`` takes."""
    chosen = [method for method in METHODS if choose(method)]
    return pytest.mark.parametrize("method", chosen, ids=lambda method: method.name)


# What makes a method do what it is for, where its defaults do nothing.
TELLING: dict[str, Any] = {
    "density": 0.4,
    "gamma": 0.1,
    "epsilon": 0.1,
    "select_topk": 0.6,
    "t": 0.3,
    "depth_scale": 0.7,
    "lambda": 0.9,
}
WEIGHTS = (0.7, 0.5, -0.2)


def values_of(
    value: LazyTensor, dtype: DType = FLOAT64, workers: int = 2, block: int | None = None
) -> Tensor:
    output = OutputTensor("x", dtype, compute_dtype(dtype), value.node)
    plan = schedule(Graph((output,)), memory=1 << 30, workers=workers, block_chunks=block)
    sink = Kept()
    execute(plan, sink)
    data = b"".join(part for _, part in sorted(sink.parts.items()))
    if not data:
        return torch.zeros(value.shape, dtype=TORCH_DTYPES[dtype.name])
    return torch.frombuffer(bytearray(data), dtype=TORCH_DTYPES[dtype.name]).view(value.shape)


def settings_of(method: Method, **given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A source's parameters, and the method's."""
    values: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for option in method.options:
        default = option.default.value if isinstance(option.default, Number) else option.default
        value = given.get(option.name, TELLING.get(option.name, default))
        values[0 if option.per_source else 1][option.name] = value
    return values


def count_of(method: Method) -> int:
    least, most = method.sources
    return max(least, min(3, most or 3))


def terms_of(
    method: Method,
    values: Sequence[LazyTensor],
    shifts: Sequence[LazyTensor],
    weights: Sequence[float],
    own: dict[str, Any],
) -> list[Term[Any]]:
    return [
        Term(
            f"source{n}", value, weight if method.weighted else 1.0, made(method.own, own), shift, n
        )
        for n, (value, shift, weight) in enumerate(zip(values, shifts, weights, strict=True))
    ]


class Case:
    """A method on a target and deltas (between bases that are not the target)."""

    def __init__(
        self,
        method: Method,
        store: Store,
        shape: tuple[int, ...] = (23, 17),
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        weights: Sequence[float] = WEIGHTS,
        **given: Any,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        count = count_of(method)

        def drawn(size: float) -> Tensor:
            return (torch.randn(shape, generator=generator) * size).to(dtype)

        self.method = method
        self.target_values = drawn(1.0)
        bases, changes = [drawn(1.0) for _ in range(count)], [drawn(0.3) for _ in range(count)]
        tuned = [(b.double() + c.double()).to(dtype) for b, c in zip(bases, changes, strict=True)]
        self.plain = [(f.double() - b.double()) for f, b in zip(tuned, bases, strict=True)]
        self.target = store(self.target_values)
        stored = [(store(f), store(b)) for f, b in zip(tuned, bases, strict=True)]
        self.deltas = [f - b for f, b in stored]
        self.shifts = [self.target - b for _, b in stored]
        self.weights = list(weights[:count])
        self.own, self.parameters = settings_of(method, **given)

    def change(self, order: Sequence[int] | None = None) -> LazyTensor:
        order = range(len(self.deltas)) if order is None else order
        terms = terms_of(self.method, self.deltas, self.shifts, self.weights, self.own)
        parameters = made(self.method.parameters, self.parameters)
        return self.method.merge(self.target, [terms[n] for n in order], parameters)

    def merged(self) -> LazyTensor:
        return self.target + self.change()

    def expected(self) -> np.ndarray[Any, Any]:
        weights = self.weights if self.method.weighted else [1.0] * len(self.weights)
        return ORACLES[self.method.name](
            self.target_values.double().numpy(),
            [each.numpy() for each in self.plain],
            weights,
            [self.own] * len(weights),
            self.parameters,
        )


def with_oracle() -> list[Method]:
    return [method for method in METHODS if method.name in ORACLES]


def test_every_method_that_is_not_random_has_an_oracle() -> None:
    assert {m.name for m in METHODS} - set(ORACLES) == {*RANDOM, "orthogonal"} & {
        m.name for m in METHODS
    }


@pytest.mark.parametrize("shape", [(), (1,), (40,), (23, 17), (1, 9), (9, 1), (3, 5, 7)], ids=str)
@pytest.mark.parametrize("method", with_oracle(), ids=lambda method: method.name)
def test_the_papers_arithmetic(method: Method, shape: tuple[int, ...], store: Store) -> None:
    case = Case(method, store, shape)
    found = values_of(case.change()).numpy()
    np.testing.assert_allclose(found, case.expected(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "stored", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize("method", with_oracle(), ids=lambda method: method.name)
def test_every_dtype(method: Method, stored: torch.dtype, store: Store) -> None:
    case = Case(method, store, (11, 8), stored)
    expected = case.target_values.double().numpy() + case.expected()
    narrow = {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
    found = values_of(case.merged(), narrow.get(stored, FLOAT64)).double().numpy()
    size = float(np.abs(expected).max())
    # Arithmetic in float32 may choose another of two elements that are as good as equal.
    unit = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}.get(stored, 1e-10)
    assert (np.abs(found - expected) > 2 * unit * size).sum() <= (2 if stored in narrow else 0)


@among(lambda method: method.name not in SPECTRAL)  # whole in any case
def test_any_blocks_and_workers(method: Method, store: Store) -> None:
    shape = (CHUNK - 5, 3) if method.name == "widen" else (3, CHUNK - 5)
    case = Case(method, store, shape, torch.bfloat16)
    bits = [
        values_of(
            case.merged(), FLOAT32 if method.name == "sce" else BFLOAT16, workers, block
        ).view(torch.uint8)
        for workers, block in ((1, 1), (3, 2))
    ]
    assert torch.equal(*bits)


@NAMED
def test_the_order_of_sources(method: Method, store: Store) -> None:
    case = Case(method, store)
    orders = list(permutations(range(len(case.deltas))))[1:]
    values = [values_of(case.change(order)) for order in orders]
    first = values_of(case.change())
    if method.alike and orders:
        assert all(torch.allclose(first, each, rtol=1e-9, atol=1e-12) for each in values)
    elif orders:
        assert not all(torch.allclose(first, each) for each in values)


@among(lambda method: method.weighted and method.name not in ("multislerp", "nuslerp"))
def test_no_weight_gives_the_target(method: Method, store: Store) -> None:
    """Of weights that say where on an arc, not all can be 0."""
    case = Case(method, store, weights=(0.0, 0.0, 0.0))
    assert torch.equal(values_of(case.merged(), FLOAT32), case.target_values)


@among(lambda method: bool(NAUGHT & {option.name for option in method.options}))
def test_what_leaves_nothing_gives_the_target(method: Method, store: Store) -> None:
    for name in sorted(NAUGHT & {option.name for option in method.options}):
        if (method.name, name) == ("slerp", "t"):  # its first end
            continue
        given = {"epsilon": 0.0} if name == "density" else {}
        case = Case(method, store, **given, **{name: 0.0})
        assert torch.equal(values_of(case.merged(), FLOAT32), case.target_values)


@NAMED
def test_deltas_of_zeros_give_the_target(method: Method, store: Store) -> None:
    """Bit for bit, its negative zeros included; nothing is divided by zero."""
    values = torch.randn(6, 7)
    values[0, :2] = torch.tensor([-0.0, 0.0])
    base, target = torch.randn(6, 7), store(values)
    deltas = [store(base) - store(base) for _ in range(count_of(method))]
    own, parameters = settings_of(method)
    terms = terms_of(
        method, deltas, [target - store(base)] * len(deltas), WEIGHTS[: len(deltas)], own
    )
    merged = target + method.merge(target, terms, made(method.parameters, parameters))
    assert torch.equal(values_of(merged, FLOAT32), values)


@NAMED
def test_a_tensor_without_elements(method: Method, store: Store) -> None:
    case = Case(method, store, (0, 4))
    assert values_of(case.merged(), FLOAT32).shape == (0, 4)


@NAMED
def test_every_parameter_tells(method: Method, store: Store) -> None:
    """Each has a meaning, a default within its bounds, and changes something."""
    for option in method.options:
        assert option.meaning
        default = option.default
        if isinstance(default, Number):
            assert option.allows(default.value)
        if option.kind == "choice":
            assert default in option.choices
    assert method.title.endswith(".")
    assert method.paper


@settings(max_examples=40, suppress_health_check=SHARED)
@given(
    method=st.sampled_from([each for each in with_oracle() if each.name not in SPECTRAL]),
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    seed=st.integers(0, 1000),
    weights=st.tuples(*[st.sampled_from([0.0, 1.0, -0.5, 0.25, 2.0])] * 3),
    density=st.sampled_from([0.1, 0.29, 0.5, 1.0]),
    normalize=st.booleans(),
)
def test_the_papers_arithmetic_anywhere(
    method: Method,
    rows: int,
    columns: int,
    seed: int,
    weights: tuple[float, float, float],
    density: float,
    normalize: bool,
    store: Store,
) -> None:
    if sum(weights[: count_of(method)]) == 0:
        return  # what a mean of nothing is, is told elsewhere
    case = Case(
        method,
        store,
        (rows, columns),
        seed=seed,
        weights=weights,
        density=density,
        normalize=normalize,
        select_topk=density,
    )
    found = values_of(case.change()).numpy()
    np.testing.assert_allclose(found, case.expected(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rescale", ["density", "norm", "none"])
@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_random_elements(name: str, rescale: str, store: Store) -> None:
    method = methods()[name]
    case = Case(method, store, (300, 200), torch.float64, density=0.3, rescale=rescale)
    case.deltas, case.plain, case.weights = case.deltas[:1], case.plain[:1], [1.0]
    terms = terms_of(method, case.deltas, case.shifts[:1], [1.0], case.own)
    parameters = made(method.parameters, {**case.parameters, "lambda": 1.0, "normalize": False})
    found, delta = values_of(method.merge(case.target, terms, parameters)), case.plain[0]
    kept = found != 0
    assert 0.29 < kept.double().mean() < 0.31
    factor = {
        "density": 1 / 0.3,
        "none": 1.0,
        "norm": float(delta.abs().sum() / delta[kept].abs().sum()),
    }[rescale]
    assert torch.allclose(found[kept], delta[kept] * factor, rtol=1e-12)
    again = values_of(method.merge(case.target, terms, parameters))
    assert torch.equal(found, again)


def test_the_part_that_is_orthogonal(store: Store) -> None:
    case = Case(methods()["orthogonal"], store, (12, 9), beta=1.0, weights=(1.0, 0.0, 0.0))
    left = values_of(case.change())
    shift = values_of(case.shifts[0])
    assert abs(float((left * shift).sum())) < 1e-9
    along = (case.plain[0] * shift).sum() / (shift * shift).sum()
    assert torch.allclose(left, case.plain[0] - along * shift)


def test_shares_are_of_the_number_as_written() -> None:
    from mergeengine.methods.sparsifying import share_of

    assert [share_of(n / 100, 100) for n in range(101)] == list(range(101))
    assert Fraction(repr(0.29)) * 100 == 29


@pytest.mark.parametrize("rescale", ["density", "norm", "none"])
def test_larger_elements_are_kept_more_often(rescale: str, store: Store) -> None:
    method = methods()["della_linear"]
    case = Case(method, store, (400, 101), torch.float64, density=0.5, epsilon=0.3, rescale=rescale)
    terms = terms_of(method, case.deltas[:1], case.shifts[:1], [1.0], case.own)
    parameters = made(method.parameters, {**case.parameters, "lambda": 1.0})
    found, delta = values_of(method.merge(case.target, terms, parameters)), case.plain[0]
    order = delta.abs().argsort(dim=-1)
    kept = (found != 0).gather(-1, order).double().mean(0)  # by rank
    expected = torch.linspace(0.2, 0.8, 101, dtype=torch.float64)
    assert (kept - expected).abs().max() < 5 * (0.25 / 400) ** 0.5
    ranks = order.argsort(dim=-1)
    factor = {
        "none": torch.ones(()),
        "density": 1 / expected[ranks],
        "norm": delta.abs().sum() / delta[found != 0].abs().sum(),
    }[rescale]
    there = found != 0
    assert torch.allclose(found[there], (delta * factor)[there], rtol=1e-9)
