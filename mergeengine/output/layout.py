"""Where every byte of the output goes, decided before the first byte is read.

The format is Hugging Face's: one ``model.safetensors``, or numbered shards and an index.
"""

import json
from dataclasses import dataclass
from math import prod

from mergeengine.lazy.dtypes import DType

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_METADATA = {"format": "pt"}


@dataclass(frozen=True, slots=True)
class Placed:
    """One output tensor: its file (by number) and its absolute byte offset in it."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    shard: int
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Shard:
    """One file: its name, its header (length prefix included) and its size in bytes."""

    name: str
    header: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The shards, and the tensors in the order they were given."""

    shards: tuple[Shard, ...]
    tensors: tuple[Placed, ...]

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)

    def index(self) -> bytes | None:
        """The content of the index file; None where there is a single shard."""
        if len(self.shards) == 1:
            return None
        document = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in self.tensors)},
            "weight_map": {
                tensor.name: self.shards[tensor.shard].name
                for tensor in sorted(self.tensors, key=lambda tensor: tensor.name)
            },
        }
        return (json.dumps(document, indent=2) + "\n").encode()


Described = tuple[str, DType, tuple[int, ...]]


def lay_out(tensors: list[Described], shard_size: int) -> Layout:
    """Place tensors, in the order given, in shards of at most ``shard_size`` bytes of data.

    A tensor larger than that gets a shard of its own. Inside a shard wider dtypes come first, so
    that every tensor is aligned to its element size.
    """
    shards: list[list[int]] = [[]]
    filled = 0
    for number, (_, dtype, shape) in enumerate(tensors):
        size = prod(shape) * dtype.itemsize
        if shards[-1] and filled + size > shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(number)
        filled += size
    placed: dict[int, Placed] = {}
    files = []
    for shard, members in enumerate(shards):
        members.sort(key=lambda number: -tensors[number][1].itemsize)  # stable
        name = SINGLE if len(shards) == 1 else _shard_name(shard, len(shards))
        entries: dict[str, object] = {"__metadata__": _METADATA}
        end = 0
        for number in members:
            tensor, dtype, shape = tensors[number]
            start, end = end, end + prod(shape) * dtype.itemsize
            entries[tensor] = {
                "dtype": dtype.code,
                "shape": list(shape),
                "data_offsets": [start, end],
            }
            placed[number] = Placed(tensor, dtype, shape, shard, start)
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        files.append(Shard(name, header, len(header) + end))
    starts = [len(shard.header) for shard in files]
    return Layout(
        tuple(files),
        tuple(
            Placed(p.name, p.dtype, p.shape, p.shard, p.offset + starts[p.shard])
            for p in (placed[number] for number in range(len(tensors)))
        ),
    )


def _shard_name(number: int, count: int) -> str:
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"
