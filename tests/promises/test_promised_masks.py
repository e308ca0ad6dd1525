"""Plans with element masks: the values are the documented ones, whatever computes them."""

import json
from pathlib import Path
from typing import Any

import children
import pytest
import torch
from children import Child
from lineage import CHUNK, make_lineage, many, sparse_lineage, weights, write_model, write_plan
from rounded_once import bits
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergeengine.errors import CheckpointError
from mergeengine.execution import native
from mergeengine.plan.load import load_plan
from mergeengine.workflow.run import run

MiB = 1 << 20
SHAPE = (3, CHUNK // 2 + 9)
MASKS: dict[str, dict[str, Any]] = {
    "top": {"top": 0.2},
    "bottom": {"bottom": 0.2},
    "above": {"above": 0.3},
    "drop": {"drop": 0.9},
    "sign": {"sign": "target_shift"},
    "orthogonal": {"orthogonal_to": "target_shift", "beta": 0.5},
    "rows": {"rows": ["0", "2-"]},
    "all": {
        "top": 0.5,
        "above": 0.1,
        "drop": 0.5,
        "sign": "target_shift",
        "scale": 0.3,
        "orthogonal_to": "target_shift",
        "tokens": [0, 1],
    },
}


def keep_first(values: Tensor, count: int, largest: bool) -> Tensor:
    order = torch.argsort(values.abs().reshape(-1), stable=True, descending=largest)[:count]
    keep = torch.zeros(values.numel(), dtype=torch.bool)
    keep[order] = True
    return keep.view(values.shape)


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Tensor]:
    lineage = make_lineage(tmp_path, {"w": SHAPE})
    return {role: tensors["w"] for role, tensors in lineage.tensors.items()}


def merge(folder: Path, mask: dict[str, Any], options: dict[str, Any], **keys: Any) -> Tensor:
    plan = write_plan(folder, masks=[{"match": "*", **mask}], **keys)
    run(plan, device="cpu", force=True, **options)
    return load_file(folder / "out" / "model.safetensors")["w"]


@pytest.mark.parametrize("name", MASKS)
def test_the_same_bytes_whatever_computes_them(
    name: str, models: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = set()
    for loop in ("1", "0"):
        monkeypatch.setenv(native.SWITCH, loop)
        for options in ({"workers": 1, "block_chunks": 1}, {"workers": 3, "block_chunks": 4}):
            found.add(bits(merge(tmp_path, MASKS[name], options)))
    assert len(found) == 1


def test_what_is_left_out_is_the_target_bit_for_bit(tmp_path: Path) -> None:
    shape = {"w": (50, 40)}
    lineage = make_lineage(tmp_path, shape)
    lineage.tensors["target"]["w"][::2] = -0.0
    for scale in (1.0, -1.0):
        for role in ("target",):
            (tmp_path / role / "model.safetensors").unlink()
            (tmp_path / role / "config.json").unlink()
            (tmp_path / role).rmdir()
            write_model(tmp_path / role, lineage.tensors[role])
        t, b, f = (lineage.tensors[role]["w"].float() for role in ("target", "base", "ft"))
        for mask, keep in (
            ({"top": 0.2}, keep_first(f - b, 400, True)),
            ({"bottom": 0.2}, keep_first(f - b, 400, False)),
            ({"above": 1.5}, (f - b).abs() > 1.5),
            ({"sign": "target_shift"}, (f - b) * (t - b) > 0),
            ({"rows": "3-"}, (torch.arange(50) >= 3)[:, None].expand(50, 40)),
        ):
            found = merge(tmp_path, {**mask, "scale": scale}, {})
            expected = torch.where(keep, t + scale * (f - b), t).bfloat16()
            assert bits(found) == bits(expected), mask


def test_keeping(tmp_path: Path) -> None:
    lineage = make_lineage(tmp_path, {"w": (30, 20)})
    ft, target = lineage.tensors["ft"]["w"], lineage.tensors["target"]["w"]
    assert bits(merge(tmp_path, {"keep": "source_ft"}, {})) == bits(ft)
    assert bits(merge(tmp_path, {"keep": "target"}, {})) == bits(target)


def test_projection(tmp_path: Path) -> None:
    lineage = make_lineage(tmp_path, {"w": (300, 20)}, torch.float32)
    t, b, f = (lineage.tensors[role]["w"].double() for role in ("target", "base", "ft"))
    delta, shift = f - b, t - b
    for beta in (1.0, 0.5):
        expected = t + delta - beta * (delta * shift).sum() / (shift * shift).sum() * shift
        mask = {"orthogonal_to": "target_shift", "beta": beta}
        assert torch.allclose(merge(tmp_path, mask, {}).double(), expected, rtol=1e-6, atol=1e-6)


def test_no_shift_leaves_the_delta(tmp_path: Path) -> None:
    make_lineage(tmp_path, {"w": (30, 20)})
    own = {"target": None, "source_base": None, "base": "./base"}
    plain = merge(tmp_path, {"scale": 1.0}, {}, **own)
    assert bits(merge(tmp_path, {"orthogonal_to": "target_shift"}, {}, **own)) == bits(plain)
    write_model(tmp_path / "copy", load_file(tmp_path / "base" / "model.safetensors"))
    copied = {"target": "./copy"}
    assert bits(merge(tmp_path, {"orthogonal_to": "target_shift"}, {}, **copied)) == bits(plain)


def sources(*order: str) -> list[dict[str, Any]]:
    """``agrees`` keeps what agrees with ``drops``, which drops half."""
    masks = {"agrees": {"sign": "agree_with drops"}, "drops": {"drop": 0.5}}
    models = {"agrees": ("./base", "./ft"), "drops": ("./ft", "./target")}
    return [
        {
            "name": name,
            "source_base": models[name][0],
            "source_ft": models[name][1],
            "masks": [masks[name]],
        }
        for name in order
    ]


def test_chance_depends_on_names_and_seed_alone(tmp_path: Path) -> None:
    make_lineage(tmp_path, {"w": (300, 20)}, torch.float64)
    alone = {"source_base": None, "source_ft": None}

    def made(*order: str, **keys: Any) -> Tensor:
        return merge(tmp_path, {"scale": 1.0}, {}, sources=sources(*order), **alone, **keys)

    one, two = made("agrees", "drops"), made("drops", "agrees")
    assert torch.allclose(one, two, rtol=1e-12, atol=1e-12)
    assert not torch.equal(one, made("agrees", "drops", seed=1))
    assert torch.equal(one, made("agrees", "drops", seed=0))
    t, b, f = (load_file(tmp_path / r / "model.safetensors")["w"] for r in ("target", "base", "ft"))
    agreed = torch.where((f - b) * (t - f) > 0, f - b, 0.0)
    kept = (one - t - agreed) / (2.0 * (t - f))
    assert bool(((kept.abs() < 1e-6) | ((kept - 1).abs() < 1e-6)).all())
    assert 0.45 < float(kept.mean()) < 0.55


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.uint16, torch.bfloat16, torch.float64]
)
def test_masks_from_a_file(dtype: torch.dtype, tmp_path: Path) -> None:
    lineage = make_lineage(tmp_path, {"w": (30, 20), "b": (30,), "c": (3, 4)})
    masks = {
        "w": torch.randint(0, 3, (30, 1)).to(dtype),
        "b": torch.randint(0, 3, (30,)).to(dtype),
    }
    save_file(masks, tmp_path / "mask.safetensors")
    plan = lineage.replan(masks=[{"file": "mask.safetensors", "default": 0.5, "scale": -1}])
    run(plan, device="cpu")
    found = load_file(tmp_path / "out" / "model.safetensors")
    t, b, f = (lineage.tensors[role] for role in ("target", "base", "ft"))
    for name in t:
        mask = masks[name].float() if name in masks else torch.tensor(0.5)
        value = t[name].float() - mask * (f[name].float() - b[name].float())
        assert bits(found[name]) == bits(torch.where(mask != 0, value, t[name]).bfloat16())
    manifest = json.loads((tmp_path / "out" / "mergeengine.json").read_text())
    content = {model["role"]: model["content"] for model in manifest["models"]}["mask"]
    assert json.loads((tmp_path / "plan.lock").read_text())["models"]["mask.safetensors"] == content
    save_file({**masks, "b": masks["b"] * 0}, tmp_path / "mask.safetensors")
    assert run(plan, device="cpu").made
    assert bits(load_file(tmp_path / "out" / "model.safetensors")["b"]) == bits(t["b"])


def test_masks_of_a_file_that_do_not_fit(tmp_path: Path) -> None:
    lineage = make_lineage(tmp_path, {"w": (30, 20), "b": (30,)})
    save_file({"w": torch.ones(1, 20)}, tmp_path / "mask.safetensors")
    plan = lineage.replan(masks=[{"match": "*", "file": "mask.safetensors"}])
    with pytest.raises(CheckpointError) as caught:
        run(plan, device="cpu")
    assert "1 masks in mask.safetensors do not fit their tensors:\n    w: " in str(caught.value)
    assert "1 tensors have no mask in mask.safetensors:\n    b" in str(caught.value)
    lineage.replan(masks=[{"match": "*", "file": "./none.safetensors"}])
    with pytest.raises(CheckpointError, match="there is no folder or file"):
        run(plan, device="cpu")


def test_rows_that_are_not_there(tmp_path: Path) -> None:
    lineage = make_lineage(tmp_path, {"w": (30, 20), "b": (5,)})
    plan = lineage.replan(masks=[{"match": "*", "rows": "0-9"}])
    with pytest.raises(CheckpointError, match=r"1 tensors have not all rows.*\n    b: \[5\]"):
        run(plan, device="cpu")
    assert load_plan(plan).seed == 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("name", ["top", "drop", "all"])
def test_memory_stays_in_the_projection(name: str, folder: Path) -> None:
    mask = {"match": "*", **MASKS[name]}
    plan = sparse_lineage(folder, many(2, 12, 1000, 1000))
    load = load_plan(plan)
    keys = {**load.document, "masks": [mask]}
    plan = write_plan(folder, **{"source_base": None, "source_ft": None, **keys})
    (_, report), peak = Child(children.run_with, plan, {"memory": 128 * MiB}).go().watch()
    assert peak <= report["memory"]["projected_bytes"] <= 128 * MiB
    assert weights(folder / "out")
