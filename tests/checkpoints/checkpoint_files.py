"""Writing checkpoints by hand, byte for byte, so that they can also be wrong."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SIZES = {"F64": 8, "I64": 8, "F32": 4, "BF16": 2, "F16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1}


def entry(begin: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    size = SIZES[dtype]
    for dim in shape:
        size *= dim
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}


def with_header(header: bytes | Mapping[str, Any], data: bytes = b"") -> bytes:
    """A safetensors file of this header (its JSON, or what to write as JSON) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def safetensors(tensors: Mapping[str, tuple[str, list[int]]], fill: int = 0) -> bytes:
    """A valid file of tensors name → (dtype, shape); its data depend on `fill`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        header[name] = entry(end, shape, dtype)
        end = header[name]["data_offsets"][1]
    pattern = bytes((fill + i * 7) % 251 for i in range(251))
    return with_header(header, (pattern * (end // 251 + 1))[:end])


def write_sharded(
    folder: Path, shards: Mapping[str, Mapping[str, tuple[str, list[int]]]], **index: Any
) -> None:
    """Shards by file name, and the index that says so (or what `index` says instead)."""
    for file, tensors in shards.items():
        (folder / file).write_bytes(safetensors(tensors))
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map, **index})


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
