"""Whether two outputs hold the same values, whatever their files."""

from __future__ import annotations

import json
from pathlib import Path

import xxhash

_BUFFER = 1 << 20


def values_digest(folder: Path, tensors: int) -> str:
    """A digest of every tensor's name, dtype, shape and bytes, in the order of names.

    ValueError where there are not as many ``tensors`` as there should be.
    """
    places = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        places.update({name: (path, 8 + length, entry) for name, entry in header.items()})
    if len(places) != tensors:
        raise ValueError(f"{folder}: {len(places)} tensors, expected {tensors}")
    digest = xxhash.xxh3_128()
    for name, (path, base, entry) in sorted(places.items()):
        digest.update(f"{name} {entry['dtype']} {entry['shape']}".encode())
        start, stop = entry["data_offsets"]
        with path.open("rb") as file:
            file.seek(base + start)
            for done in range(start, stop, _BUFFER):
                digest.update(file.read(min(_BUFFER, stop - done)))
    return digest.hexdigest()
