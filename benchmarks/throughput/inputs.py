"""Three checkpoints to merge: Llama's shapes, random bfloat16 values, several shards each."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("target", "base", "ft")
ITEMSIZE = 2  # bfloat16
_SHARDS = 4
_LEAST_LAYERS = 4
_MARKER = "inputs.json"
_INDEX = "model.safetensors.index.json"

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Llama:
    """The sizes that decide a Llama checkpoint's tensors."""

    name: str
    width: int
    inner: int
    vocabulary: int
    heads: int
    key_heads: int
    tied: bool

    def config(self, layers: int) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "num_hidden_layers": layers,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
        }

    def shapes(self, layers: int) -> Shapes:
        """Tensors in the order in which checkpoints on the hub hold them."""
        shapes: Shapes = {"model.embed_tokens.weight": (self.vocabulary, self.width)}
        for number in range(layers):
            shapes.update(
                (f"model.layers.{number}.{name}.weight", shape) for name, shape in self._layer()
            )
        shapes["model.norm.weight"] = (self.width,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocabulary, self.width)
        return shapes

    def layers_for(self, size: int) -> int:
        """The number of layers with which a checkpoint comes nearest to ``size`` bytes."""
        fixed = checkpoint_bytes(self.shapes(0))
        return max(0, round((size - fixed) / (checkpoint_bytes(self.shapes(1)) - fixed)))

    def _layer(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        keys = self.width // self.heads * self.key_heads
        yield "input_layernorm", (self.width,)
        yield "mlp.down_proj", (self.width, self.inner)
        yield "mlp.gate_proj", (self.inner, self.width)
        yield "mlp.up_proj", (self.inner, self.width)
        yield "post_attention_layernorm", (self.width,)
        yield "self_attn.k_proj", (keys, self.width)
        yield "self_attn.o_proj", (self.width, self.width)
        yield "self_attn.q_proj", (self.width, self.width)
        yield "self_attn.v_proj", (keys, self.width)


_LLAMAS = (
    Llama("Llama-3 70B", 8192, 28672, 128256, 64, 8, tied=False),
    Llama("Llama-3 8B", 4096, 14336, 128256, 32, 8, tied=False),
    Llama("Llama-3.2 1B", 2048, 8192, 128256, 32, 8, tied=True),
    *(
        Llama(f"Llama-3.2 1B / {part}", 2048 // part, 8192 // part, 128256 // part, 32, 8, True)
        for part in (2, 4, 8, 16, 32, 64)
    ),
)


@dataclass(frozen=True, slots=True)
class Layout:
    """What a checkpoint of some size looks like: a Llama, its layers, and its files."""

    llama: Llama
    layers: int
    shapes: Shapes
    shards: dict[str, list[str]]  # file to names
    shard_bytes: int  # the most tensor bytes in a file, as plans say it

    def __str__(self) -> str:
        return f"{self.llama.name}, {self.layers} layers"


@dataclass(frozen=True, slots=True)
class Inputs:
    """The three models in ``folder``, one below the other, by role."""

    folder: Path
    layout: Layout

    @property
    def tensor_bytes(self) -> int:
        """Of one model."""
        return checkpoint_bytes(self.layout.shapes)

    @property
    def moved_bytes(self) -> int:
        """Read and written."""
        return (len(ROLES) + 1) * self.tensor_bytes

    def files(self, role: str) -> list[Path]:
        return [self.folder / role / file for file in self.layout.shards]


def checkpoint_bytes(shapes: Shapes) -> int:
    return sum(map(prod, shapes.values())) * ITEMSIZE


def layout_for(size: int) -> Layout:
    """The largest Llama that has some layers within ``size`` bytes, in a few shards."""
    fitting = (llama for llama in _LLAMAS if llama.layers_for(size) >= _LEAST_LAYERS)
    llama = next(fitting, _LLAMAS[-1])
    layers = max(_LEAST_LAYERS, llama.layers_for(size))
    shapes = llama.shapes(layers)
    largest = max(map(prod, shapes.values())) * ITEMSIZE
    shard_bytes = max(-(-checkpoint_bytes(shapes) // _SHARDS), largest)
    groups: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        held = prod(shape) * ITEMSIZE
        if not groups or held > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(name)
        room -= held
    files = (f"model-{n:05d}-of-{len(groups):05d}.safetensors" for n in range(1, len(groups) + 1))
    return Layout(llama, layers, shapes, dict(zip(files, groups, strict=True)), shard_bytes)


def prepare(folder: Path, size: int) -> Inputs:
    """Models of about ``size`` bytes each, in a folder of their own; made if not there yet."""
    layout = layout_for(size)
    words = str(layout).lower().replace(",", "").replace("/", "part").split()
    inputs = Inputs(folder.resolve() / "-".join(words), layout)
    marker = inputs.folder / _MARKER
    if not marker.exists():
        shutil.rmtree(inputs.folder, ignore_errors=True)
        inputs.folder.mkdir(parents=True)
        # In a process of its own: this one stays small and needs no PyTorch.
        module = [sys.executable, "-m", "benchmarks.throughput.inputs"]
        subprocess.run([*module, str(inputs.folder), str(size)], cwd=ROOT, check=True)
        marker.write_text(json.dumps({"layout": str(layout), "bytes": inputs.tensor_bytes}) + "\n")
    return inputs


def _write_models(folder: Path, layout: Layout) -> None:
    for role in ROLES:
        (folder / role).mkdir()
        config = json.dumps(layout.llama.config(layout.layers), indent=2)
        (folder / role / "config.json").write_text(config)
        index = {
            "metadata": {"total_size": checkpoint_bytes(layout.shapes)},
            "weight_map": {name: file for file, names in layout.shards.items() for name in names},
        }
        (folder / role / _INDEX).write_text(json.dumps(index, indent=2))
        for file, names in layout.shards.items():
            _write_shard(folder / role / file, role, {name: layout.shapes[name] for name in names})


def _write_shard(path: Path, role: str, shapes: Shapes) -> None:
    """Weights of a usual spread; the fine-tune is near its base and the target not far away."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for name, shape in shapes.items():
        # Every role draws the base's values anew, so that no two models are held at once.
        values = _normal(f"base {name}", shape).mul_(0.02)
        if role != "base":
            own = {"ft": 0.001, "target": 0.004}[role]
            values.add_(_normal(f"{role} {name}", shape).mul_(own))
        tensors[name] = values.to(torch.bfloat16)
    save_file(tensors, path, metadata={"format": "pt"})


def _normal(seed: str, shape: tuple[int, ...]) -> Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(crc32(seed.encode())))


if __name__ == "__main__":
    _write_models(Path(sys.argv[1]), layout_for(int(sys.argv[2])))
