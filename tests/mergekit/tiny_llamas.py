"""Tiny checkpoints in the layout of Llama, and what a configuration made of them."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

Tensors = Mapping[str, np.ndarray]

WIDTH, INNER, TOKENS = 4, 6, 8
IN_A_LAYER = {
    "input_layernorm.weight": (WIDTH,),
    "self_attn.q_proj.weight": (WIDTH, WIDTH),
    "self_attn.o_proj.weight": (WIDTH, WIDTH),
    "mlp.up_proj.weight": (INNER, WIDTH),
    "mlp.down_proj.weight": (WIDTH, INNER),
    "post_attention_layernorm.weight": (WIDTH,),
}


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (TOKENS, WIDTH)}
    for layer in range(layers):
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in IN_A_LAYER.items()}
    return {**found, "model.norm.weight": (WIDTH,), "lm_head.weight": (TOKENS, WIDTH)}


def make(folder: Path, *, layers: int = 4, near: Tensors | None = None) -> dict[str, np.ndarray]:
    """Write a model of float32, random by its name; ``near`` is one that it differs little from."""
    random = np.random.default_rng(sum(folder.name.encode()))
    tensors = {
        name: random.standard_normal(shape).astype(np.float32)
        for name, shape in shapes(layers).items()
    }
    if near is not None:
        tensors = {name: near[name] + np.float32(0.1) * each for name, each in tensors.items()}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "vocab_size": TOKENS,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"of": folder.name}))
    (folder / "generation_config.json").write_text(json.dumps({"of": folder.name}))
    return tensors


def read(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def layer_of(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else None


def named(name: str, layer: int) -> str:
    """The tensor of that name in another layer."""
    parts = name.split(".")
    return ".".join([*parts[:2], str(layer), *parts[3:]])
