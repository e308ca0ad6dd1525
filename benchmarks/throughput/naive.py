"""What one writes in ten minutes: tensor by tensor with safetensors and torch, saved by shard.

As a process: ``python -m benchmarks.throughput.naive FOLDER OUTPUT REPORT.json``.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

_INDEX = "model.safetensors.index.json"


def main(folder: Path, output: Path, report: Path) -> None:
    began = time.perf_counter()
    output.mkdir()
    weight_map = json.loads((folder / "target" / _INDEX).read_text())["weight_map"]
    for file in sorted(set(weight_map.values())):
        merged = {}
        with (
            safe_open(folder / "target" / file, "pt") as target,
            safe_open(folder / "base" / file, "pt") as base,
            safe_open(folder / "ft" / file, "pt") as ft,
        ):
            for name in target.keys():  # noqa: SIM118  (not a dict)
                delta = ft.get_tensor(name).float() - base.get_tensor(name).float()
                merged[name] = (target.get_tensor(name).float() + delta).to(torch.bfloat16)
        save_file(merged, output / file, metadata={"format": "pt"})
    for name in ("config.json", _INDEX):
        shutil.copyfile(folder / "target" / name, output / name)
    report.write_text(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
