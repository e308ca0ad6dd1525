"""Every value is the documented one: bit for bit, for all shapes, dtypes and bit patterns."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lineage import CHUNK, random_tensors, write_model, write_plan
from rounded_once import bits, merged
from safetensors.torch import load_file
from torch import Tensor

from mergeengine.workflow.run import run

HALF = [torch.bfloat16, torch.float16]
FLOATS = [*HALF, torch.float32, torch.float64]
SMALL_FLOATS = [torch.float8_e4m3fn, torch.float8_e5m2]
OTHERS = [torch.int64, torch.int8, torch.uint8, torch.bool, torch.int32]

ROLES = ("target", "base", "ft")


def noise(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Any bit pattern: denormals, infinities, NaNs with payloads, both zeros."""
    generator = np.random.default_rng(seed)
    count = math.prod(shape)
    if count == 0:
        return torch.zeros(shape, dtype=dtype)
    if dtype == torch.bool:
        return torch.from_numpy(generator.integers(0, 2, count).astype(bool)).reshape(shape)
    data = generator.integers(0, 256, count * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(data).view(dtype).reshape(shape)


def normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    values = torch.from_numpy(np.random.default_rng(seed).standard_normal(math.prod(shape)))
    return values.to(dtype).reshape(shape)


def execute(models: dict[str, dict[str, Tensor]], options: dict[str, Any], **plan: Any) -> Any:
    """Run a plan over these models in a folder of its own: the output's tensors."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for role, tensors in models.items():
            write_model(folder / role, tensors)
        run(write_plan(folder, **plan, on_nonfinite="allow"), device="cpu", **options)
        return load_file(folder / "out" / "model.safetensors")


def same(found: Tensor, expected: Tensor) -> bool:
    same_form = (found.dtype, found.shape) == (expected.dtype, expected.shape)
    return same_form and bits(found) == bits(expected)


SHAPES = st.one_of(
    st.just(()),
    st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple),
    st.lists(st.integers(1, 3000), min_size=1, max_size=1).map(tuple),
)
NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.3, 1e-3, 0.5, 2.0, 1e-45, 1e30, 1e200]),
    st.floats(-3, 3, allow_nan=False),
)


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    tensors = []
    for _ in range(draw(st.integers(1, 4))):
        target = draw(st.sampled_from(FLOATS + OTHERS))
        pool = (FLOATS + SMALL_FLOATS) if target.is_floating_point else [target]
        tensors.append(
            {
                "shape": draw(SHAPES),
                "dtypes": (target, draw(st.sampled_from(pool)), draw(st.sampled_from(pool))),
                "mask": draw(st.one_of(st.none(), NUMBERS)),
            }
        )
    return {
        "tensors": tensors,
        "values": draw(st.sampled_from([noise, normal])),
        "seed": draw(st.integers(0, 1 << 30)),
        "scaling": draw(NUMBERS),
        "output": draw(st.sampled_from([None, None, *FLOATS])),
        "workers": draw(st.integers(1, 3)),
        "chunks": draw(st.integers(1, 4)),
    }


@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(plans())
def test_any_plan(drawn: dict[str, Any]) -> None:
    _check(drawn)


@pytest.mark.slow
@settings(max_examples=3000, suppress_health_check=list(HealthCheck))
@given(plans())
def test_any_plan_at_length(drawn: dict[str, Any]) -> None:
    _check(drawn)


def _check(drawn: dict[str, Any]) -> None:
    models: dict[str, dict[str, Tensor]] = {role: {} for role in ROLES}
    masks, expected = [], {}
    for number, tensor in enumerate(drawn["tensors"]):
        name = f"layers.{number}.weight"
        of = {}
        for role, (key, dtype) in enumerate(zip(ROLES, tensor["dtypes"], strict=True)):
            of[key] = drawn["values"](tensor["shape"], dtype, drawn["seed"] + 10 * number + role)
            models[key][name] = of[key]
        factor = 1.0
        if tensor["mask"] is not None:
            factor = tensor["mask"]
            masks.append({"layers": number, "scale": factor})
        output = drawn["output"] or of["target"].dtype
        if of["target"].is_floating_point():
            source = (drawn["scaling"] * factor, of["base"], of["ft"])
            expected[name] = merged(of["target"], [source], output)
        else:
            expected[name] = of["target"]
    place: dict[str, Any] = {"path": "./out"}
    if drawn["output"] is not None:
        place["dtype"] = str(drawn["output"]).removeprefix("torch.")
    options = {"workers": drawn["workers"], "block_chunks": drawn["chunks"]}
    found = execute(models, options, scaling=drawn["scaling"], masks=masks, output=place)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert same(found[name], tensor), (name, found[name], tensor)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    count=st.integers(2, 4),
    scalings=st.lists(NUMBERS, min_size=4, max_size=4),
    masked=st.lists(NUMBERS, min_size=4, max_size=4),
    overall=NUMBERS,
    seed=st.integers(0, 1 << 30),
    dtype=st.sampled_from(FLOATS),
    wide=st.booleans(),
)
def test_several_sources_add_in_the_order_of_the_plan(
    count: int,
    scalings: list[float],
    masked: list[float],
    overall: float,
    seed: int,
    dtype: torch.dtype,
    wide: bool,
) -> None:
    models = {"target": {"w": normal((300,), dtype, seed)}}
    listed, sources = [], []
    for number in range(count):
        pair = [normal((300,), dtype, seed + 1 + 2 * number + i) for i in range(2)]
        models[f"base{number}"], models[f"ft{number}"] = ({"w": tensor} for tensor in pair)
        keys = {"source_base": f"./base{number}", "source_ft": f"./ft{number}"}
        masks = [{"match": "*", "scale": masked[number]}]
        listed.append({**keys, "scaling": scalings[number], "masks": masks})
        sources.append((scalings[number] * overall * masked[number], *pair))
    found = execute(
        models,
        {},
        source_base=None,
        source_ft=None,
        sources=listed,
        masks=[{"match": "w", "scale": overall}],
        numerics={"compute_dtype": "float64" if wide else "auto"},
    )
    expected = merged(models["target"]["w"], sources, dtype, float64=wide)
    assert same(found["w"], expected)


EDGES = {
    "one": (1,),
    "less than a chunk": (CHUNK - 1,),
    "a chunk": (CHUNK,),
    "more than a chunk": (CHUNK + 1,),
    "rows across chunks": (5, CHUNK // 2 - 1),
    "a row of chunks": (1, 2 * CHUNK + 3),
    "thin": (CHUNK + 1, 2),
    "deep": (3, 5, 7, 20011),
    "nothing": (0,),
    "no rows": (0, 5),
    "no columns": (5, 0, 3),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("options", [{"block_chunks": 1}, {"block_chunks": 4}], ids=str)
def test_shapes_at_the_edges_of_chunks(options: dict[str, int], dtype: torch.dtype) -> None:
    models = {
        role: {name: normal(shape, dtype, 3 * n + seed) for n, (name, shape) in enumerate(cases)}
        for seed, role in enumerate(ROLES)
        for cases in [list(EDGES.items())]
    }
    found = execute(models, options, scaling=0.7)
    for name, target in models["target"].items():
        source = (0.7, models["base"][name], models["ft"][name])
        assert same(found[name], merged(target, [source], dtype)), name


@pytest.mark.parametrize("how", ["scaling", "negative scaling", "plan mask", "source mask"])
@pytest.mark.parametrize("dtype", [*FLOATS, *SMALL_FLOATS], ids=str)
def test_zero_is_the_target_bit_for_bit(how: str, dtype: torch.dtype) -> None:
    """NaNs with payloads, signalling ones too, and negative zeros."""
    models = {role: {"w": noise((3000, 3), dtype, seed)} for seed, role in enumerate(ROLES)}
    models["target"]["w"][0, 0] = -0.0
    mask = [{"match": "*", "scale": 0.0}]
    plan: dict[str, Any] = {
        "scaling": {"scaling": 0.0},
        "negative scaling": {"scaling": -0.0},
        "plan mask": {"masks": mask},
        "source mask": {
            "source_base": None,
            "source_ft": None,
            "sources": [{"source_base": "./base", "source_ft": "./ft", "masks": mask}],
        },
    }[how]
    found = execute(models, {}, **plan)
    assert bits(found["w"]) == bits(models["target"]["w"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_against_the_naive_oracle(dtype: torch.dtype) -> None:
    """In float64 on whole tensors, rounded once: one unit apart in less than 1 of 10,000."""
    elements = differing = 0
    for seed, scaling in enumerate([1.0, 0.7, 0.3, -1.3]):
        shapes = {"w": (700, 1000)}
        target = random_tensors(shapes, 10 * seed, torch.float32)["w"].to(dtype)
        base = random_tensors(shapes, 10 * seed + 1, torch.float32)["w"].to(dtype)
        step = random_tensors(shapes, 10 * seed + 2, torch.float32)["w"] * 0.05
        ft = (base.float() + step).to(dtype)
        models = {"target": {"w": target}, "base": {"w": base}, "ft": {"w": ft}}
        found = execute(models, {}, scaling=scaling)["w"]
        oracle = merged(target, [(scaling, base, ft)], dtype, float64=True)
        wrong = found != oracle
        elements += wrong.numel()
        differing += int(wrong.sum())
        integer = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
        apart = found[wrong].view(integer).long() - oracle[wrong].view(integer).long()
        # Where target and delta cancel, what remains is the rounding of the coefficient.
        size = target.double().abs() + abs(scaling) * (ft.double() - base.double()).abs()
        cancelled = (found.double() - oracle.double()).abs()[wrong] <= 2.0**-22 * size[wrong]
        assert bool(((apart.abs() <= 1) | cancelled).all())
    assert differing < elements / 10_000
    if dtype == torch.float32:
        assert differing == 0
