"""A small lineage, a program that stands for fine-tuning, and chains over them."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2}

# Changes the low byte of each value by a number; says when it has run. Nothing but the standard
# library, so that it takes no time.
TUNE = """\
import json, os, shutil, sys
source, output, amount = sys.argv[1:4]
data = bytearray(open(os.path.join(source, "model.safetensors"), "rb").read())
start = 8 + int.from_bytes(data[:8], "little")
for place in range(start, len(data), 2):
    data[place] = (data[place] + int(amount)) % 256
os.makedirs(output)
open(os.path.join(output, "model.safetensors"), "wb").write(data)
shutil.copy(os.path.join(source, "config.json"), output)
print("tuned by", amount)
with open("calls.txt", "a") as file:
    file.write(os.environ["MERGEENGINE_STEP"] + "\\n")
"""


def make_model(folder: Path, seed: int, dtype: torch.dtype = torch.bfloat16) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    tensors = {"model.embed_tokens.weight": random(40, 8), "model.norm.weight": random(8)}
    for layer in range(2):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = random(16, 8)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))


def tune(source: str, amount: int = 1, program: str = "tune.py") -> dict[str, Any]:
    command = [sys.executable, "-I", "-S", program, f"{{{source}}}", "{output}", amount]
    return {"command": command, "files": [program]}


ITERATIVE: dict[str, Any] = {
    "version": 1,
    "name": "lineage",
    "models": {"m1": "./m1", "m2": "./m2", "m3": "./m3"},
    "steps": [
        {"id": "m1_ft", "run": tune("m1")},
        {"id": "m2_start", "plan": {"target": "m2", "source_base": "m1", "source_ft": "m1_ft"}},
        {"id": "m2_ft", "run": tune("m2_start")},
        {"id": "m3_start", "plan": {"target": "m3", "source_base": "m2", "source_ft": "m2_ft"}},
        {"id": "m3_ft", "run": tune("m3_start")},
    ],
}


def steps_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {step["id"]: step for step in document["steps"]}


def write_chain(folder: Path, document: dict[str, Any], name: str = "chain.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def lineage(folder: Path) -> None:
    for seed, name in enumerate(("m1", "m2", "m3")):
        make_model(folder / name, seed)
    (folder / "tune.py").write_text(TUNE)


def calls(folder: Path) -> list[str]:
    """The steps whose program has run to its end, in order, since this was last asked."""
    path = folder / "calls.txt"
    found = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, but logs."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".log"
    }
