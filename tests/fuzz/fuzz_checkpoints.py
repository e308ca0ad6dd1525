"""Coverage-guided fuzzing of everything that reads a stranger's files (``make fuzz``).

Needs atheris, which instruments the package's Python as it is imported. An input's first byte
chooses what the rest is taken for; a corpus of small valid files is made first, so that mutation
starts behind the first checks. Whatever is not a clear MergeEngineError is a finding and is kept in
the working folder as ``crash-...``; so is what takes more than 1 GiB or 20 s.
"""

import json
import struct
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mergeengine"]):
    from mergeengine.checkpoints.adapter import adapted
    from mergeengine.checkpoints.checkpoint import open_checkpoint
    from mergeengine.checkpoints.config import contradictions
    from mergeengine.checkpoints.quantised import quantised
    from mergeengine.errors import MergeEngineError
    from mergeengine.lazy.weight import leaves
    from mergeengine.plan.load import parse_plan

FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
MODEL, CONFIG = "model.safetensors", "config.json"
KINDS = (
    MODEL,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    CONFIG,
    "adapter_config.json",
    "plan.yaml",
)


def header(**tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


SMALL = header(w={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}) + bytes(8)
(FOLDER / MODEL).write_bytes(
    header(**{"q.weight": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}) + bytes(64)
)
BASE = open_checkpoint(FOLDER)
LORA = {
    f"base_model.model.q.lora_{part}.weight": {
        "dtype": "F32", "shape": shape, "data_offsets": [place, place + 32],
    }
    for part, shape, place in (("A", [2, 4], 0), ("B", [4, 2], 32))
}  # fmt: skip
ADAPTER = header(**LORA) + bytes(64)


def test_one_input(data: bytes) -> None:
    if not data:
        return
    kind, content = KINDS[data[0] % len(KINDS)], data[1:]
    if kind == "plan.yaml":
        with suppress(MergeEngineError):
            parse_plan(content.decode("utf-8", "replace"), "plan.yaml")
        return
    for path in FOLDER.iterdir():
        path.unlink()
    (FOLDER / kind).write_bytes(content)
    if kind in (CONFIG, "adapter_config.json"):
        if kind == CONFIG:
            (FOLDER / MODEL).write_bytes(SMALL)
        else:
            (FOLDER / "adapter_model.safetensors").write_bytes(ADAPTER)
    if kind.endswith(".index.json"):
        (FOLDER / "a.safetensors").write_bytes(SMALL)
    with suppress(MergeEngineError):
        checkpoint = open_checkpoint(FOLDER, weights="either")
        quantised(checkpoint.config)
        contradictions(checkpoint.config, checkpoint.tensors)
        checkpoint.fingerprint()
        for tensor in checkpoint.tensors.values():
            for leaf in leaves(tensor):
                assert 0 <= leaf.offset <= leaf.offset + leaf.nbytes <= leaf.file.size, leaf
        if checkpoint.adapter is not None:
            adapted(BASE, checkpoint)


def seeds(folder: Path) -> None:
    """Valid files to begin with."""
    import torch

    folder.mkdir(exist_ok=True)
    torch_file = folder / "t"
    valid: dict[str, list[bytes]] = {kind: [] for kind in KINDS}
    valid[MODEL].append(SMALL)
    index = {"metadata": {}, "weight_map": {"w": "a.safetensors"}}
    valid["model.safetensors.index.json"].append(json.dumps(index).encode())
    valid["pytorch_model.bin.index.json"].append(json.dumps(index).encode())
    state = {"w": torch.arange(4.0).view(2, 2).t(), "b": torch.zeros(3, dtype=torch.bfloat16)}
    for zipped in (True, False):
        torch.save(state, torch_file, _use_new_zipfile_serialization=zipped)
        valid["pytorch_model.bin"].append(torch_file.read_bytes())
    config = {"model_type": "llama", "hidden_size": 2, "vocab_size": 3, "num_hidden_layers": 1}
    valid[CONFIG].append(json.dumps(config).encode())
    lora = {
        "peft_type": "LORA",
        "target_modules": ["q"],
        "r": 2,
        "lora_alpha": 4,
        "base_model_name_or_path": "org/name",
    }
    valid["adapter_config.json"].append(json.dumps(lora).encode())
    plan = "version: 1\nbase: org/a\nsource_ft: ./b\nscaling: [0.1, 1]\n"
    plan += "masks: [{match: '*', top: 0.1}]\n"
    valid["plan.yaml"].append(plan.encode())
    for number, kind in enumerate(KINDS):
        for place, content in enumerate(valid[kind]):
            (folder / f"{number}-{place}").write_bytes(bytes([number]) + content)
    torch_file.unlink(missing_ok=True)


def main() -> None:
    corpus = Path(sys.argv[1])
    seeds(corpus)
    arguments = [sys.argv[0], str(corpus), "-rss_limit_mb=1024", "-timeout=20", *sys.argv[2:]]
    atheris.Setup(arguments, test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
