"""Rounding as mergekit does: what torch's own arithmetic in the working dtype gives, to the bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergeengine.compiler.mergekit_rounding import nearest
from mergeengine.errors import PlanError
from mergeengine.lazy.dtypes import OUTPUT_DTYPES
from mergeengine.plan import parse_plan
from mergeengine.workflow.run import run

NAME = "model.layers.0.mlp.up_proj.weight"
WEIGHTS = (0.3, 0.45, 0.7)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
Models = dict[str, Tensor]


@pytest.fixture
def models(tmp_path: Path) -> Models:
    generator = torch.Generator().manual_seed(7)
    base = torch.randn(96, 64, generator=generator) * 0.05
    made = {"t": base}
    for name in "abc":
        made[name] = base + torch.randn(base.shape, generator=generator) * 0.01
    for name, values in made.items():
        (tmp_path / name).mkdir()
        save_file({NAME: values}, tmp_path / name / "model.safetensors")
    return made


def merged(folder: Path, method: str, numerics: str, after: str = "", own: str = "") -> Tensor:
    weights = method not in ("model_stock", "passthrough")
    named = "a" if method == "passthrough" else "abc"
    sources = "".join(
        f"  - {{model: ./{name}{f', scaling: {weight}' if weights else ''}{own}}}\n"
        for name, weight in zip(named, WEIGHTS, strict=False)
    )
    target = "" if method == "passthrough" else "target: ./t\n"
    text = f"version: 1\n{target}method: {method}\nsources:\n{sources}numerics: {numerics}\n{after}"
    run(parse_plan(text, folder / "p.yaml"), output=folder / "out")
    return load_file(folder / "out" / "model.safetensors")[NAME]


def numerics(dtype: str) -> str:
    return f"{{compatibility: mergekit, compute_dtype: {dtype}}}\noutput: {{dtype: {dtype}}}"


def deltas(models: Models, dtype: torch.dtype) -> Tensor:
    base = models["t"].to(dtype)
    return torch.stack([models[name].to(dtype) - base for name in "abc"])


def column(dtype: torch.dtype) -> Tensor:
    return torch.tensor(WEIGHTS, dtype=dtype).view(3, 1, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [False, True])
def test_task_arithmetic_is_torchs_in_that_dtype(tmp_path, models, dtype, normalize) -> None:
    kind = DTYPES[dtype]
    total = (deltas(models, kind) * column(kind)).sum(dim=0)
    if normalize:
        total = total / column(kind).sum()
    expected = models["t"].to(kind) + total * 0.7
    after = f"parameters: {{lambda: 0.7, normalize: {str(normalize).lower()}}}\n"
    found = merged(tmp_path, "task_arithmetic", numerics(dtype), after)
    assert found.dtype == kind
    assert torch.equal(found, expected)


def fused(accumulated: np.ndarray, values: np.ndarray, weight: float) -> np.ndarray:
    """float32 multiply-add with one rounding, by way of float64, where the product is exact."""
    product = values.astype(np.float64) * np.float64(np.float32(weight))
    return (accumulated.astype(np.float64) + product).astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_is_fused_in_float32_and_rounded_once(tmp_path, models, dtype) -> None:
    kind = DTYPES[dtype]
    a, b, c = (models[name].to(kind).float().numpy() for name in "abc")
    total = a * np.float32(WEIGHTS[0])
    total = fused(fused(total, b, WEIGHTS[1]), c, WEIGHTS[2])
    expected = torch.from_numpy(total / np.float32(sum(WEIGHTS))).to(kind)
    assert torch.equal(merged(tmp_path, "linear", numerics(dtype)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_signs_are_elected_in_that_dtype(tmp_path, models, dtype) -> None:
    kind = DTYPES[dtype]
    weighted = deltas(models, kind) * column(kind)
    elected = (weighted.sum(dim=0) >= 0).to(kind) * 2 - 1
    agree = weighted.sign() == elected
    counted = (agree * column(kind)).sum(dim=0)
    counted[counted == 0] = 1
    expected = models["t"].to(kind) + (weighted * agree).sum(dim=0) / counted
    assert torch.equal(merged(tmp_path, "ties", numerics(dtype)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_are_ranked_as_that_dtype_has_them(tmp_path, models, dtype) -> None:
    kind = DTYPES[dtype]
    delta = deltas(models, kind).float()
    least = delta.abs().flatten(1).sort(dim=1, descending=True).values[:, delta[0].numel() // 4 - 1]
    found = (
        merged(tmp_path, "ties", numerics(dtype), own=", parameters: {density: 0.25}").float()
        - models["t"].to(kind).float()
    )
    below = (delta.abs() < least.view(3, 1, 1)).all(dim=0)
    assert below.any()
    assert not found[below].any()


def test_a_scale_is_not_rounded(tmp_path, models) -> None:
    text = (
        "version: 1\nmethod: passthrough\nsources: [{model: ./a, scaling: 0.3}]\n"
        f"numerics: {numerics('bfloat16')}\n"
    )
    run(parse_plan(text, tmp_path / "p.yaml"), output=tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")[NAME]
    assert torch.equal(found, models["a"].bfloat16() * 0.3)


def test_what_is_taken_is_cast_too(tmp_path, models) -> None:
    after = "masks: [{scale: 0}]\n"
    wide = numerics("bfloat16").replace("output: {dtype: bfloat16}", "output: {dtype: float32}")
    found = merged(tmp_path, "task_arithmetic", wide, after)
    assert torch.equal(found, models["t"].bfloat16().float())


def test_the_dtype_is_the_tensors_own_where_none_is_given(tmp_path, models) -> None:
    for name, values in models.items():
        save_file({NAME: values.bfloat16()}, tmp_path / name / "model.safetensors")
    given = merged(tmp_path, "task_arithmetic", numerics("bfloat16"))
    own = merged(tmp_path, "task_arithmetic", "{compatibility: mergekit}")
    assert own.dtype == torch.bfloat16
    assert torch.equal(own, given)
    plain = merged(tmp_path, "task_arithmetic", "{}")
    assert not torch.equal(own, plain)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_for_compatibility(dtype) -> None:
    text = (
        "version: 1\ntarget: ./t\nsource_base: ./a\nsource_ft: ./b\n"
        f"numerics: {{compute_dtype: {dtype}}}\n"
    )
    with pytest.raises(PlanError, match=r"p\.yaml:5:27.*compatibility: mergekit"):
        parse_plan(text, Path("p.yaml"))


@given(st.floats(allow_nan=False) | st.floats(-2, 2))
def test_numbers_are_rounded_as_torch_rounds_them(value: float) -> None:
    for name, dtype in DTYPES.items():
        assert nearest(value, OUTPUT_DTYPES[name]) == torch.tensor(value).to(dtype).item()
