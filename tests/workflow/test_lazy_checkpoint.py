"""Arithmetic on checkpoints from Python."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mergeengine
from mergeengine import CheckpointError, LazyCheckpoint, open_checkpoint
from mergeengine.lazy.partition import CHUNK


def write(folder: Path, tensors: dict[str, Tensor], **config: object) -> LazyCheckpoint:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "toy", **config}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return open_checkpoint(folder)


@pytest.fixture
def models(tmp_path: Path) -> list[LazyCheckpoint]:
    torch.manual_seed(0)
    return [
        write(
            tmp_path / name,
            {
                "layers.0.w": torch.randn(50, 40).to(torch.bfloat16),
                "layers.1.w": torch.randn(1200, 1000).to(torch.bfloat16),
                "norm": torch.randn(40),
                "ids": torch.arange(3) + number,
            },
        )
        for number, name in enumerate(("target", "base", "ft"))
    ]


def naive(name: str, folder: Path, scale: float) -> Tensor:
    target, base, ft = (
        load_file(folder / model / "model.safetensors")[name] for model in ("target", "base", "ft")
    )
    compute = torch.float32 if target.dtype == torch.bfloat16 else torch.float64
    delta = (ft.to(compute) - base.to(compute)) * scale
    return (target.to(compute) + delta).to(target.dtype)


def test_saving_an_expression(models: list[LazyCheckpoint], tmp_path: Path) -> None:
    target, base, ft = models
    merged = target + 0.8 * (ft - base)
    path = merged.save(tmp_path / "merged")
    saved = load_file(path / "model.safetensors")
    for name in ("layers.0.w", "layers.1.w", "norm"):
        assert torch.equal(saved[name], naive(name, tmp_path, 0.8))
    assert torch.equal(saved["ids"], torch.arange(3))
    assert mergeengine.verify(path) == []
    before = (path / "model.safetensors").stat().st_mtime_ns
    merged.save(path)
    assert (path / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(mergeengine.OutputError, match="made by another plan"):
        (target + 0.7 * (ft - base)).save(path)
    (target + 0.7 * (ft - base)).save(path, force=True)
    saved = load_file(path / "model.safetensors")
    assert torch.equal(saved["norm"], naive("norm", tmp_path, 0.7))


def test_iterating_in_memory(models: list[LazyCheckpoint], tmp_path: Path) -> None:
    target, base, ft = models
    merged = target + 0.8 * (ft - base)
    values = dict(merged.tensors())
    assert list(values) == list(target)
    assert torch.equal(values["layers.1.w"], naive("layers.1.w", tmp_path, 0.8))
    assert values["layers.1.w"].dtype == torch.bfloat16
    blocks = [(b.name, b.start, b.values.numel()) for b in merged.blocks(memory=1 << 27)]
    assert sum(n for name, _, n in blocks if name == "layers.1.w") == 1_200_000
    assert all(start % CHUNK == 0 for _, start, _ in blocks)


def test_operators(models: list[LazyCheckpoint]) -> None:
    target, base, _ = models
    one = dict(((target * 2.0 - target) / 1.0).tensors())
    assert torch.equal(one["norm"], load_file(target.origin.folder / "model.safetensors")["norm"])
    assert repr(-(1 - base)).count("base") == 1
    assert dict((1 - base).astype("float32").tensors())["layers.0.w"].dtype == torch.float32
    with pytest.raises(TypeError):
        target + "x"  # type: ignore[operator]
    with pytest.raises(ValueError, match="no output dtype"):
        target.astype("int8")


def test_map_keeps_shapes(models: list[LazyCheckpoint]) -> None:
    target, base, _ = models
    mapped = target.map(lambda name, t: t * 0.5 if name.startswith("layers.0") else t)
    assert mapped["norm"].node is target["norm"].node
    assert mapped["layers.0.w"].node is not target["layers.0.w"].node
    with pytest.raises(ValueError, match=r"norm: shape \(40,\) became \(3,\)"):
        base.map(lambda name, t: t[0:3])


def test_what_does_not_fit_is_listed(models: list[LazyCheckpoint], tmp_path: Path) -> None:
    other = write(tmp_path / "other", {"norm": torch.zeros(41)})
    with pytest.raises(CheckpointError) as raised:
        models[0] + other
    for part in ("layers.0.w: missing", "layers.1.w: missing", "norm: shapes [40] and [41]"):
        assert part in str(raised.value)


def test_quantised_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="quantised"):
        write(tmp_path / "q", {"w": torch.zeros(2)}, quantization_config={"quant_method": "gptq"})


def test_a_plan_as_a_lazy_checkpoint(models: list[LazyCheckpoint], tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "version: 1\ntarget: ./target\nsource_base: ./base\nsource_ft: ./ft\nscaling: 0.8\n"
        "output: {path: ./out}\n"
    )
    lazy = mergeengine.compile_plan(mergeengine.load_plan(plan))
    mergeengine.run(plan)
    saved = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in lazy.tensors():
        assert torch.equal(saved[name], value)


def test_an_input_is_never_replaced(models: list[LazyCheckpoint], tmp_path: Path) -> None:
    with pytest.raises(mergeengine.OutputError, match="lies there"):
        (models[0] * 2.0).save(tmp_path / "target", force=True)
    assert (tmp_path / "target" / "model.safetensors").exists()
