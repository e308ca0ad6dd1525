"""Scalings that differ by depth, and those that come from norms, against naive arithmetic."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from children import Child, run_with
from lineage import (
    make_lineage,
    many,
    random_tensors,
    weights,
    write_model,
    write_plan,
    write_sparse_model,
)
from rounded_once import merged
from safetensors.torch import load_file

from mergeengine.workflow.run import run
from mergeengine.workflow.sweep import sweep

LAYERS = 5
SHAPES = {
    "model.embed_tokens.weight": (50, 16),
    **{f"model.layers.{n}.mlp.up_proj.weight": (40, 16) for n in range(LAYERS)},
    "model.norm.weight": (16,),
    "lm_head.weight": (50, 16),
}


def result(folder: Path) -> dict[str, torch.Tensor]:
    run(folder / "plan.yaml", device="cpu")
    return load_file(folder / "out" / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_schedule_is_one_number_for_each_layer(tmp_path: Path, dtype: torch.dtype) -> None:
    scaling = {"points": [0.2, 0.5, 1.0], "outside": {"before": 0.1}}
    models = make_lineage(tmp_path, SHAPES, dtype, scaling=scaling).tensors
    found = result(tmp_path)
    for name, target in models["target"].items():
        layer = int(name.split(".")[2]) if "layers" in name else None
        factor = 0.1 if "embed" in name else 1.0
        if layer is not None:
            factor = [0.2, 0.35, 0.5, 0.75, 1.0][layer]
        expected = merged(target, [(factor, models["base"][name], models["ft"][name])], dtype)
        assert torch.equal(found[name], expected), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("ratio", [0.1, -0.5, 3.0])
def test_the_delta_gets_the_norm_that_the_ratio_says(
    tmp_path: Path, ratio: float, dtype: torch.dtype
) -> None:
    lineage = make_lineage(tmp_path, SHAPES, dtype, scaling={"ratio": ratio})
    found = result(tmp_path)
    for name, (target, base, ft) in _double(lineage.tensors).items():
        factor = ratio * np.linalg.norm(target) / np.linalg.norm(ft - base)
        assert np.linalg.norm(factor * (ft - base)) == pytest.approx(
            abs(ratio) * np.linalg.norm(target)
        )
        _close(found[name], target + factor * (ft - base), dtype, np.abs(target).max() * 6)


@pytest.mark.parametrize("factor", [1.0, 0.02, -0.7])
def test_a_bound_weakens_only_what_exceeds_it(tmp_path: Path, factor: float) -> None:
    keys = {"scaling": {"at_most": [0.05, 0.4], "value": factor}}
    masks = [{"kind": "norm", "scale": 0.5}]
    lineage = make_lineage(tmp_path, SHAPES, torch.float32, masks=masks, **keys)
    found = result(tmp_path)
    for name, (target, base, ft) in _double(lineage.tensors).items():
        depth = int(name.split(".")[2]) / (LAYERS - 1) if "layers" in name else 1.0
        depth = 0.0 if "embed" in name else depth
        bound = (0.05 + 0.35 * depth) * np.linalg.norm(target) / np.linalg.norm(ft - base)
        used = math.copysign(min(abs(factor), bound), factor)
        used *= 0.5 if name == "model.norm.weight" else 1.0
        _close(found[name], target + used * (ft - base), torch.float32, np.abs(target).max() * 6)


@pytest.mark.parametrize("scaling", [{"ratio": 0.5}, {"at_most": 0.5}], ids=str)
def test_norms_of_zero(tmp_path: Path, scaling: dict[str, float]) -> None:
    shapes = {"a.weight": (7, 3), "b.weight": (7, 3), "c.weight": (0, 3), "d.weight": (7, 3)}
    models = {r: random_tensors(shapes, n) for n, r in enumerate(("target", "base", "ft"))}
    models["ft"]["a.weight"] = models["base"]["a.weight"].clone()
    models["target"]["b.weight"].zero_()
    models["ft"]["d.weight"][0, 0] = math.nan
    for role, tensors in models.items():
        write_model(tmp_path / role, tensors)
    write_plan(tmp_path, scaling=scaling, on_nonfinite="allow")
    found = result(tmp_path)
    for name in ("a.weight", "b.weight", "c.weight"):
        assert torch.equal(found[name], models["target"][name]), name
    assert found["d.weight"].isnan().all(), "what is not finite is not hidden"


def test_a_ratio_of_zero_is_frozen(tmp_path: Path) -> None:
    rules = [{"kind": "mlp", "value": 0}, {"value": 0.1}]
    lineage = make_lineage(tmp_path, SHAPES, torch.bfloat16, scaling={"ratio": rules})
    found = result(tmp_path)
    for name, target in lineage.tensors["target"].items():
        assert torch.equal(found[name], target) == ("mlp" in name), name


def test_each_rule_has_its_measure(tmp_path: Path) -> None:
    rules = [
        {"kind": "norm", "value": {"at_most": 0.05, "value": -1}},
        {"kind": "mlp", "value": {"ratio": [0.1, 0.5]}},
        {"kind": "head", "value": 0},
        {"value": 0.7},
    ]
    lineage = make_lineage(tmp_path, SHAPES, torch.float32, scaling=rules)
    found = result(tmp_path)
    for name, (target, base, ft) in _double(lineage.tensors).items():
        relative = np.linalg.norm(target) / np.linalg.norm(ft - base)
        factor = 0.0 if "head" in name else 0.7
        if "mlp" in name:
            factor = (0.1 + 0.4 * int(name.split(".")[2]) / (LAYERS - 1)) * relative
        if "norm" in name:
            factor = -min(1, 0.05 * relative)
        _close(found[name], target + factor * (ft - base), torch.float32, np.abs(target).max() * 6)


def test_neither_workers_nor_blocks_nor_a_sweep_change_it(tmp_path: Path) -> None:
    shapes = {"model.layers.0.mlp.weight": (1300, 1000), "model.layers.1.mlp.weight": (1100, 1000)}
    make_lineage(tmp_path, shapes, scaling={"ratio": 0.1})
    run(tmp_path / "plan.yaml", device="cpu", workers=1, output=tmp_path / "one")
    run(tmp_path / "plan.yaml", device="cpu", workers=3, block_chunks=2, output=tmp_path / "three")
    sweep(tmp_path / "plan.yaml", ["scaling.ratio=0.1,0.3"], device="cpu", output=tmp_path / "s")
    one = weights(tmp_path / "one")
    assert weights(tmp_path / "three") == one
    swept = [weights(folder) for folder in sorted(tmp_path.glob("s-*"))]
    assert swept[0] == one != swept[1]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_norms_of_many_tensors_keep_the_projection(tmp_path: Path) -> None:
    for role in ("target", "base", "ft"):
        write_sparse_model(tmp_path / role, many(2000, 64, 32))
    plan = write_plan(tmp_path, scaling={"ratio": 0.1})
    (made, report), peak = Child(run_with, plan, {"workers": 2}).go().watch()
    assert made
    assert peak <= report["memory"]["projected_bytes"]


def _double(models: dict[str, dict[str, torch.Tensor]]) -> dict[str, tuple[np.ndarray, ...]]:
    return {
        name: tuple(models[role][name].double().numpy() for role in ("target", "base", "ft"))
        for name in models["target"]
    }


def _close(found: torch.Tensor, oracle: np.ndarray, dtype: torch.dtype, size: float) -> None:
    """Within the rounding of the output, and of terms of that size in the arithmetic."""
    error = np.abs(found.double().numpy() - oracle)
    unit = torch.finfo(dtype).eps
    assert (error <= unit * np.abs(oracle) * 0.51 + size * 2.0**-22).all()
