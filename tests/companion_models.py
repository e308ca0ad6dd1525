"""Small model folders for the tests of companion files."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from mergeengine.checkpoints.checkpoint import Checkpoint, open_checkpoint

EMBEDDING = "model.embed_tokens.weight"
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 8,
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
}


def tokenizer_json(tokens: list[str], added: dict[str, int] | None = None) -> dict:
    return {
        "version": "1.0",
        "truncation": {"max_length": 4096},
        "added_tokens": [
            {"id": number, "content": text, "special": True}
            for text, number in (added or {}).items()
        ],
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": []},
    }


def make_model(
    folder: Path, files: dict[str, object] | None = None, *, config: dict | None = LLAMA, rows=8
) -> Checkpoint:
    """A folder with one tensor, config.json and the given files (objects are written as JSON)."""
    folder.mkdir(parents=True)
    save_file({EMBEDDING: torch.zeros(rows, 4, dtype=torch.bfloat16)}, folder / "model.safetensors")
    write_files(folder, files or {})
    if config is not None:
        write_files(folder, {"config.json": config})
    return open_checkpoint(folder)


def write_files(folder: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
