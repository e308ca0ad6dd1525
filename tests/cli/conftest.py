"""Three tiny models and a plan in the current folder, and a way to call the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 3,
    "hidden_size": 4,
    "vocab_size": 8,
}
PLAN = """\
version: 1
name: tiny
target: ./target
source_base: ./base
source_ft: ./ft
scaling: 0.7
masks:
  - {layers: "0", scale: 0}
  - {match: "*.mlp.*", scale: 0.5}
output:
  path: out
"""


def make_model(folder: Path, seed: int, config: dict[str, Any] | None = None) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(torch.bfloat16)

    tensors = {"model.embed_tokens.weight": random(8, 4), "model.norm.weight": random(4)}
    for layer in range(3):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = random(6, 4)
        tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] = random(4, 4)
    tensors["model.steps"] = torch.tensor([seed])
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with target, base, ft and plan.yaml."""
    for seed, name in enumerate(("target", "base", "ft")):
        make_model(tmp_path / name, seed)
    (tmp_path / "plan.yaml").write_text(PLAN)
    monkeypatch.chdir(tmp_path)
    return tmp_path
