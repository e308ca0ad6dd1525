"""Small model lineages on disk, their plans, and what a folder holds."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from rounded_once import bits
from safetensors.torch import load_file, save_file
from torch import Tensor

Shapes = Mapping[str, Sequence[int]]
Tensors = Mapping[str, Tensor]

CHUNK = 1 << 20
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "dtype": "bfloat16",
    "eos_token_id": 2,
}


def random_tensors(
    shapes: Shapes, seed: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(tuple(shape), generator=generator) * scale).to(dtype)
        for name, shape in shapes.items()
    }


def write_model(
    folder: Path,
    tensors: Tensors,
    *,
    shards: Sequence[Sequence[str]] = (),
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A model folder: one file, or one for each list of names in ``shards``, with an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or CONFIG))
    if not shards:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_sparse_model(folder: Path, shapes: Shapes, dtype: str = "BF16") -> Path:
    """A model of zeros that takes no disk: its header, and a hole."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    size = {"BF16": 2, "F32": 4, "F64": 8}[dtype]
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + size * torch.Size(shape).numel()
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def sparse_lineage(folder: Path, shapes: Shapes, dtype: str = "BF16", sources: int = 1) -> Path:
    """A plan over models of zeros, which take no disk as inputs."""
    write_sparse_model(folder / "target", shapes, dtype)
    listed = []
    for number in range(sources):
        pair = {"source_base": f"./base{number}", "source_ft": f"./ft{number}", "scaling": 0.3}
        write_sparse_model(folder / f"base{number}", shapes, dtype)
        write_sparse_model(folder / f"ft{number}", shapes, dtype)
        listed.append(pair)
    return write_plan(folder, source_base=None, source_ft=None, sources=listed)


def many(count: int, *shape: int) -> Shapes:
    return {f"model.layers.{number}.mlp.weight": shape for number in range(count)}


def llama(hidden: int, inner: int, keys: int, layers: int, vocabulary: int = 128_256) -> Shapes:
    """The tensors of a Llama whose ``lm_head`` is its own."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        parts = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in parts.items()}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def write_plan(folder: Path, name: str = "plan.yaml", **keys: Any) -> Path:
    """A plan over ``target``, ``base`` and ``ft`` beside it, unless ``keys`` say otherwise."""
    document: dict[str, Any] = {
        "version": 1,
        "target": "./target",
        "source_base": "./base",
        "source_ft": "./ft",
        "output": {"path": "./out"},
    }
    document.update(keys)
    document = {key: value for key, value in document.items() if value is not None}
    path = folder / name
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@dataclass(frozen=True)
class Lineage:
    """A folder with ``target``, ``base``, ``ft`` and ``plan.yaml``; the output goes to ``out``."""

    folder: Path
    tensors: dict[str, dict[str, Tensor]] = field(repr=False)

    @property
    def plan(self) -> Path:
        return self.folder / "plan.yaml"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def partial(self) -> Path:
        return self.folder / ".out.partial"

    def replan(self, **keys: Any) -> Path:
        """Write ``plan.yaml`` anew."""
        return write_plan(self.folder, **keys)


SMALL: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (1000, 64),
    "model.layers.0.mlp.up_proj.weight": (1200, 1000),  # more than one chunk
    "model.layers.0.input_layernorm.weight": (64,),
    "model.layers.1.mlp.up_proj.weight": (2300, 1000),
    "model.layers.1.input_layernorm.weight": (64,),
    "lm_head.weight": (1000, 64),
}


def make_lineage(
    folder: Path,
    shapes: Shapes | None = None,
    dtype: torch.dtype = torch.bfloat16,
    shards: Mapping[str, Sequence[Sequence[str]]] | None = None,
    **keys: Any,
) -> Lineage:
    """Random models of equal shapes, and the plan; ``keys`` go into the plan."""
    shapes = SMALL if shapes is None else shapes
    folder.mkdir(parents=True, exist_ok=True)
    models = {}
    for seed, role in enumerate(("target", "base", "ft")):
        models[role] = random_tensors(shapes, seed, dtype)
        write_model(folder / role, models[role], shards=(shards or {}).get(role, ()))
    write_plan(folder, **keys)
    return Lineage(folder, models)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder; of a link, where it leads."""
    return {
        path.relative_to(folder).as_posix(): (
            f"link to {path.readlink()}"
            if path.is_symlink()
            else hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def weights(folder: Path) -> dict[str, bytes]:
    """Name to dtype, shape and bytes of every tensor, wherever in the folder it lies."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            found[name] = f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + bits(tensor)
    return found


def leftovers(folder: Path) -> list[str]:
    """Names that no finished run leaves: workspaces, temporary locks."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]
