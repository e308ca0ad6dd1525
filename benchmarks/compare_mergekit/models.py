"""Tiny models to merge: Llama's tensors, random values, a base and three that differ from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.compare_mergekit.cases import BASE, LAYERS, TUNED

_WIDTH, _INNER, _TOKENS = 128, 256, 256
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": _WIDTH,
    "intermediate_size": _INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": _TOKENS,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (_TOKENS, _WIDTH)
    for layer in range(LAYERS):
        for name, shape in (
            ("input_layernorm", (_WIDTH,)),
            ("self_attn.q_proj", (_WIDTH, _WIDTH)),
            ("self_attn.k_proj", (_WIDTH // 2, _WIDTH)),
            ("self_attn.v_proj", (_WIDTH // 2, _WIDTH)),
            ("self_attn.o_proj", (_WIDTH, _WIDTH)),
            ("post_attention_layernorm", (_WIDTH,)),
            ("mlp.gate_proj", (_INNER, _WIDTH)),
            ("mlp.up_proj", (_INNER, _WIDTH)),
            ("mlp.down_proj", (_WIDTH, _INNER)),
        ):
            yield f"model.layers.{layer}.{name}.weight", shape
    yield "model.norm.weight", (_WIDTH,)
    yield "lm_head.weight", (_TOKENS, _WIDTH)


def make(folder: Path, dtype: str) -> None:
    """Write the four models, stored in ``dtype``."""
    generator = torch.Generator().manual_seed(1)
    base = {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in _shapes()}
    for model in (BASE, *TUNED):
        tensors = {
            name: values
            if model == BASE
            else values + torch.randn(values.shape, generator=generator) * 0.01
            for name, values in base.items()
        }
        kind = getattr(torch, dtype)
        (folder / model).mkdir(parents=True, exist_ok=True)
        save_file(
            {name: values.to(kind) for name, values in tensors.items()},
            folder / model / "model.safetensors",
            metadata={"format": "pt"},
        )
        text = json.dumps({**_CONFIG, "torch_dtype": dtype}, indent=1)
        (folder / model / "config.json").write_text(text + "\n", encoding="utf-8")
