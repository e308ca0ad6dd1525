"""Models whose weights are torch files: folders, shards, models of the hub, plans."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_stand_in import COMMIT, StandInHub
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergeengine import run
from mergeengine.checkpoints import Checkpoint, open_checkpoint
from mergeengine.errors import CheckpointError
from mergeengine.lazy.weight import node_of
from mergeengine.workflow.lazy_checkpoint import open_lazily

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
A, B = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def weights(seed: int = 0) -> dict[str, Tensor]:
    """Contiguous, transposed, a part of a wider one, not of floats, and two of one storage."""
    wide = some(6, 20, seed=seed)
    return {
        "layers.0.weight": some(5, 7, seed=seed),
        "layers.1.weight": some(7, 5, seed=seed + 1).t(),
        "layers.2.weight": wide[:, 3:9],
        "layers.2.bias": wide[0, :6],
        "positions": torch.arange(12).view(3, 4).t(),
        "mask": torch.ones(1, 3, dtype=torch.bool).expand(3, 3),
    }


def torch_bytes(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def save_sharded(folder: Path, shards: dict[str, dict[str, Tensor]], **weight_map: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in shards.items():
        torch.save(content, folder / name)
    named = {tensor: name for name, content in shards.items() for tensor in content}
    (folder / INDEX).write_text(json.dumps({"weight_map": {**named, **weight_map}}))


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def nodes(checkpoint: Checkpoint) -> dict[str, object]:
    """What each tensor is, apart from when its file was fetched."""
    return {
        name: (tensor.dtype, tensor.shape, node_of(tensor).op)
        for name, tensor in checkpoint.tensors.items()
    } | {str(number): (leaf.offset, leaf.shape) for number, leaf in enumerate(checkpoint.stored())}


def test_shards_and_their_index(tmp_path: Path) -> None:
    content = weights()
    names = list(content)
    parts = {A: {n: content[n] for n in names[:2]}, B: {n: content[n] for n in names[2:]}}
    save_sharded(tmp_path, parts)
    checkpoint = open_checkpoint(tmp_path)
    assert [file.path.name for file in checkpoint.files] == [A, B]
    same(dict(open_lazily(tmp_path).tensors()), content)


def test_an_index_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_sharded(tmp_path, {A: {"a": some(2)}, B: {"b": some(2)}}, ghost=A)
    with pytest.raises(CheckpointError, match="named by the index, but in no file: 'ghost'"):
        open_checkpoint(tmp_path)
    save_sharded(tmp_path, {A: {"a": some(2)}, B: {"b": some(2)}}, b="gone.bin")
    with pytest.raises(CheckpointError, match=r"are missing: 'gone\.bin'"):
        open_checkpoint(tmp_path)


def test_of_several_formats_the_one_is_taken_that_transformers_takes(tmp_path: Path) -> None:
    for number, name in enumerate(
        (INDEX, SINGLE, "model.safetensors.index.json", "model.safetensors")
    ):
        if name == INDEX:
            save_sharded(tmp_path, {A: {"w": some(1) + number}})
        elif name == SINGLE:
            torch.save({"w": some(1) + number}, tmp_path / name)
        elif name == "model.safetensors":
            save_file({"w": some(1) + number}, tmp_path / name)
        else:
            save_file({"w": some(1) + number}, tmp_path / "part.safetensors")
            (tmp_path / name).write_text('{"weight_map": {"w": "part.safetensors"}}')
        same(dict(open_lazily(tmp_path).tensors()), {"w": some(1) + number})


def test_what_a_trainer_leaves_is_not_taken_and_not_copied(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / SINGLE)
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"step": torch.tensor(1)}, tmp_path / name)
    checkpoint = open_checkpoint(tmp_path)
    assert [file.path.name for file in checkpoint.files] == [SINGLE]
    assert checkpoint.companions() == ()


@pytest.mark.parametrize("legacy", [False, True])
def test_on_the_hub_only_what_describes_the_tensors_is_read(
    legacy: bool, empty_hub: StandInHub
) -> None:
    content = {**weights(), "large": some(1000, 1000)}
    data = torch_bytes(content, _use_new_zipfile_serialization=not legacy)
    empty_hub.models["org/model"] = {COMMIT: {SINGLE: data}}
    checkpoint = open_checkpoint("org/model")
    read = [size for _, name, size in empty_hub.log if name == SINGLE]
    assert sum(read) < len(data) // 4
    assert len(read) <= 3
    checkpoint.fetch(checkpoint.files)
    assert nodes(open_checkpoint("org/model")) == nodes(checkpoint)
    same(dict(open_lazily("org/model").tensors()), content)


def test_a_damaged_file_of_the_hub_is_named(empty_hub: StandInHub) -> None:
    data = torch_bytes({"w": some(300, 300)})
    empty_hub.models["org/model"] = {COMMIT: {SINGLE: data[: len(data) // 2]}}
    with pytest.raises(CheckpointError, match=r"^org/model: pytorch_model.bin: the zip archive is"):
        open_checkpoint("org/model")


def plan(folder: Path, target: str, base: str, ft: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(
        f"version: 1\nname: torch\ntarget: ./{target}\nsource_base: ./{base}\n"
        f"source_ft: ./{ft}\nscaling: 0.5\noutput: {{path: ./merged}}\n"
    )
    return path


def test_a_plan_over_all_formats(tmp_path: Path) -> None:
    """A target with strides, a legacy base, safetensors as the fine-tune: one result."""
    target, base, ft = (weights(seed) for seed in (0, 10, 20))
    (tmp_path / "target").mkdir()
    torch.save({"state_dict": target, "epoch": 1}, tmp_path / "target" / SINGLE)
    torch.save(base, tmp_path / "base.pt", _use_new_zipfile_serialization=False)
    save_file({n: t.contiguous() for n, t in ft.items()}, tmp_path / "ft.safetensors")
    where = plan(tmp_path, "target", "base.pt", "ft.safetensors")
    first = run(where)
    assert first.made
    assert any("the weights are those in ['state_dict']" in note for note in first.notes)
    result = load_file(first.output / "model.safetensors")
    for name, tensor in target.items():
        if tensor.is_floating_point():
            expected = tensor.double() + 0.5 * (ft[name].double() - base[name].double())
            torch.testing.assert_close(result[name], expected.float(), rtol=3e-7, atol=1e-9)
        else:
            assert torch.equal(result[name], tensor)
    assert not run(where).made
    torch.save(weights(11), tmp_path / "base.pt", _use_new_zipfile_serialization=False)
    assert run(where).made


def test_the_result_does_not_depend_on_format_or_strides(tmp_path: Path) -> None:
    """The same bytes as from contiguous safetensors."""
    merged = []
    for number, strided in enumerate((True, False)):
        folder = tmp_path / str(number)
        folder.mkdir()
        for seed, role in enumerate(("target", "base", "ft")):
            content = weights(seed * 7)
            if strided:
                torch.save(content, folder / f"{role}.bin")
            else:
                contiguous = {n: t.contiguous().clone() for n, t in content.items()}
                save_file(contiguous, folder / f"{role}.safetensors")
        suffix = "bin" if strided else "safetensors"
        names = [f"{role}.{suffix}" for role in ("target", "base", "ft")]
        merged.append(load_file(run(plan(folder, *names)).output / "model.safetensors"))
    same(merged[0], merged[1])
