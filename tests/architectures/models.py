"""Three versions of a tiny model on disk, plans that merge them, and what comes out."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import torch
import transformers
import yaml
from exact import Expected, Tensors, double_roundings, stored
from safetensors.torch import save_file
from tiny_architectures import ARCHITECTURES, Architecture

from mergeengine.workflow.run import RunResult, run

# What is kept in float32 in a model of mixed dtypes: norms, routers, state matrices.
FLOAT32_PARTS = re.compile(r"norm|\bln_|LayerNorm|router|\.gate\.|A_log$|\.D$")


@dataclass(frozen=True)
class Storage:
    """How the models are written: the dtype by name or ``mixed``, and in one file or in shards."""

    dtype: str
    sharded: bool

    def __str__(self) -> str:
        return f"{self.dtype}-{'shards' if self.sharded else 'single'}"

    def shard_size(self, role: str) -> int:
        """Base and fine-tune are cut where the target is not, and each differently."""
        sizes = {"base": 90_000, "ft": 60_000, "target": 70_000}
        small = self.sharded if role == "target" else not self.sharded
        return sizes[role] if small else 10**9


@torch.no_grad()
def perturb(model: torch.nn.Module, seed: int, amount: float) -> None:
    """Move every weight by ``amount`` of its tensor's spread; count up what is an integer."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in unique_tensors(model):
        if not tensor.is_floating_point():
            tensor += seed
            continue
        spread = tensor.std() if tensor.numel() > 1 else tensor.abs().max()
        size = amount * max(float(spread), 0.02)
        tensor += size * torch.randn(tensor.shape, generator=generator)


def unique_tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    """Everything the state dict holds, tied tensors once."""
    return list({tensor.data_ptr(): tensor for tensor in model.state_dict().values()}.values())


@torch.no_grad()
def convert(model: torch.nn.Module, dtype: str) -> None:
    if dtype != "mixed":
        model.to(getattr(torch, dtype))
        return
    model.to(torch.bfloat16)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if FLOAT32_PARTS.search(name) and tensor.is_floating_point():
            tensor.data = tensor.data.float()
            tensor.data += 1e-4 * torch.randn(tensor.shape)  # more than bfloat16 holds


def save_lineage(
    build: Callable[[], transformers.PreTrainedModel], folder: Path, storage: Storage
) -> None:
    """``base``, ``ft`` (the base, a little trained) and ``target`` (the base, trained further)."""
    torch.manual_seed(0)
    model = build()
    perturb(model, 1, 0.3)  # no norm is all ones and no bias zero in a trained model
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for role, seed, amount in (("base", 2, 0.0), ("ft", 3, 0.05), ("target", 4, 0.2)):
        model.to(torch.float32)
        model.load_state_dict(start)
        perturb(model, seed, amount)
        convert(model, storage.dtype)
        model.save_pretrained(folder / role, max_shard_size=storage.shard_size(role))


def write_plan(folder: Path, **keys: Any) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({"version": 1, **keys}, sort_keys=False))
    return path


def merge(folder: Path, **keys: Any) -> RunResult:
    """Run a plan on ``target``, ``base`` and ``ft`` of a folder; ``keys`` are those of the plan."""
    roles = {"target": "./target", "source_base": "./base", "source_ft": "./ft"}
    if "base" in keys:
        roles = {"source_ft": "./ft"}
    elif "sources" in keys:
        roles = {"target": "./target"}
    output = {"path": "./out", **keys.pop("output", {})}
    plan = write_plan(folder, **roles, **keys, output=output)
    return run(plan, device="cpu", workers=2, memory=256 << 20)


def load(architecture: Architecture, folder: Path, **options: Any) -> transformers.PreTrainedModel:
    """The model as a user loads it; nothing may be missing, left over or of another shape."""
    model, info = architecture.auto_class.from_pretrained(
        folder, output_loading_info=True, **options
    )
    assert not any(info.values()), info
    assert type(model) is architecture.model_class
    return model.eval()


@torch.no_grad()
def logits(model: transformers.PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    typed = {
        name: value.to(model.dtype) if value.is_floating_point() else value
        for name, value in inputs.items()
    }
    result: torch.Tensor = model(**typed).logits
    assert bool(result.isfinite().all())
    return result


def random_inputs(architecture: Architecture) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return architecture.inputs()


def save_llama(
    folder: Path, seed: int, dtype: torch.dtype = torch.bfloat16, **changes: Any
) -> transformers.PreTrainedModel:
    """A Llama of two layers; those of other seeds and equal settings lie near it."""
    torch.manual_seed(0)
    model = ARCHITECTURES["llama"].build(num_hidden_layers=2, **changes)
    perturb(model, seed, 0.2)
    model.to(dtype).save_pretrained(folder)
    return model


def rewrite(folder: Path, change: Callable[[Tensors], None]) -> None:
    """Change the tensors of a folder and write them as one file."""
    tensors = stored(folder)
    change(tensors)
    for path in folder.glob("*safetensors*"):
        path.unlink()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def check_output(folder: Path, oracle: dict[str, Expected], architecture: str = "llama") -> None:
    """``out`` holds the oracle's tensors and loads as the model they make in its config."""
    output = stored(folder / "out")
    assert output.keys() == oracle.keys()
    weights = agreed(output, oracle)
    model = ARCHITECTURES[architecture]
    result = load(model, folder / "out")
    other = load_weights(model, folder / "out", weights, folder / "oracle")
    inputs = random_inputs(model)
    assert torch.equal(logits(result, inputs), logits(other, inputs))


def agreed(output: Tensors, oracle: dict[str, Expected]) -> Tensors:
    """The oracle's values, and the output's where they are double roundings."""
    return {
        name: torch.where(double_roundings(output[name], value), output[name], value.rounded)
        for name, value in oracle.items()
    }


def load_weights(
    architecture: Architecture, like: Path, weights: Tensors, place: Path
) -> transformers.PreTrainedModel:
    """A model of these weights, with every other file of the folder ``like``."""
    copytree(like, place, ignore=ignore_patterns("*safetensors*"))
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    return load(architecture, place)
