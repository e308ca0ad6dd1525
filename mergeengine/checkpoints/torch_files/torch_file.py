"""A torch file in any of its formats: its weights as expressions over ranges of the file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO

import xxhash

from mergeengine.checkpoints.documents import shown
from mergeengine.checkpoints.reading import Read
from mergeengine.checkpoints.torch_files.legacy import read_legacy
from mergeengine.checkpoints.torch_files.records import Archive
from mergeengine.checkpoints.torch_files.state_dict import Found, module_state, state_dict
from mergeengine.checkpoints.torch_files.strides import strided
from mergeengine.checkpoints.torch_files.unpickler import Instance, unpickle
from mergeengine.checkpoints.torch_files.vocabulary import TorchTensor, TorchVocabulary
from mergeengine.errors import CheckpointError
from mergeengine.lazy import algebra
from mergeengine.lazy.dtypes import BY_NAME
from mergeengine.lazy.nodes import Node, Shape, walk
from mergeengine.lazy.stored import Stored, StoredFile
from mergeengine.lazy.weight import Derived, Weight

_ZIP = b"PK"
_TAR = (257, b"ustar")
_MOST_TAKEN = 1 << 22  # indices in all expressions of a file
_MAGIC = 8  # bytes by which other formats are told apart
_NOT_TORCH = {
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file: use the safetensors checkpoint that it was made from",
    b"vers": "a pointer of Git LFS, not the file: fetch it with `git lfs pull`",
    b"<htm": "a web page, not the file",
    b"<!DO": "a web page, not the file",
}


@dataclass(frozen=True, slots=True)
class TorchFile:
    """The weights of a file in the order in which they lie there.

    `header` is a digest of the pickle that describes them; `within` are the keys of the dicts
    around the state dict, from the outside in.
    """

    weights: tuple[Weight, ...]
    header: bytes
    within: tuple[str, ...] = ()


def read_torch_file(read: Read, file: StoredFile, source: str, label: str) -> TorchFile:
    """Read what a torch file says about its weights: zip, legacy or TorchScript.

    Nothing of it is run, and no tensor is read. `label` names the file in messages; `source` is
    the checkpoint's reference. What is damaged, would run code, or cannot be merged is a
    CheckpointError.
    """
    start = read(0, _MAGIC)
    if start.startswith(_ZIP):
        return _from_zip(read, file, source, label)
    offset, magic = _TAR
    if read(offset, len(magic)) == magic:
        raise CheckpointError(
            f"{label}: saved in the tar format of torch before 0.1.10, which is not read: load it "
            "with torch and save it again"
        )
    for beginning, kind in _NOT_TORCH.items():
        if start.startswith(beginning):
            raise CheckpointError(f"{label}: it is no torch file but {kind}")
    vocabulary = TorchVocabulary(label)
    legacy = read_legacy(read, file.size, label, vocabulary)
    found, within = state_dict(legacy.content, label)
    weights = _weights(found, legacy.places, file, source, label)
    digest = xxhash.xxh3_128(read(0, legacy.size)).digest()
    return TorchFile(weights, digest, within)


def _from_zip(read: Read, file: StoredFile, source: str, label: str) -> TorchFile:
    archive = Archive.open(read, file.size, label)
    torchscript = "constants.pkl" in archive.records
    if "byteorder" in archive.records and archive.content("byteorder") != b"little":
        raise CheckpointError(
            f"{label}: it was saved on a big-endian machine: load it with torch and save it again"
        )
    vocabulary = TorchVocabulary(label, torchscript=torchscript)
    pickled = archive.content("data.pkl")
    content = unpickle(BytesIO(pickled), vocabulary, label)
    within: tuple[str, ...] = ()
    if torchscript and isinstance(content, Instance):
        found = module_state(content, partial(_code, archive), label)
    else:
        found, within = state_dict(content, label)
    records = {f"data/{t.storage.key}": t.storage for t in found.values()}
    places = archive.places(records)
    for name, storage in records.items():
        if places[name][1] != storage.numel * storage.itemsize:
            raise CheckpointError(
                f"{label}: damaged: the record {shown(name)} has {places[name][1]} bytes, expected "
                f"were {storage.numel * storage.itemsize}"
            )
    by_key = {storage.key: places[name] for name, storage in records.items()}
    weights = _weights(found, by_key, file, source, label)
    return TorchFile(weights, xxhash.xxh3_128(pickled).digest(), within)


def _code(archive: Archive, module: str) -> str | None:
    """The TorchScript code of a module, which lists the parameters of its classes."""
    name = f"code/{module.replace('.', '/')}.py"
    if name not in archive.records:
        return None
    return archive.content(name).decode("utf-8", errors="replace")


def _weights(
    found: Found, places: Mapping[str, tuple[int, int]], file: StoredFile, source: str, label: str
) -> tuple[Weight, ...]:
    def first_byte(item: tuple[str, TorchTensor]) -> tuple[int, int]:
        _, tensor = item
        return places[tensor.storage.key][0], tensor.storage.start + tensor.offset

    weights: list[Weight] = []
    taken = 0
    for name, tensor in sorted(found.items(), key=first_byte):
        dtype = BY_NAME.get(tensor.dtype)
        if dtype is None:
            raise CheckpointError(
                f"{label}: tensor {shown(name)} has the dtype {tensor.dtype}, which cannot be "
                f"merged (known are {', '.join(BY_NAME)}): use the model's unquantised checkpoint"
            )
        storage = tensor.storage
        base = places[storage.key][0] + storage.start * storage.itemsize
        numel = storage.length * storage.itemsize // dtype.itemsize
        array = partial(_array, Stored(source, name, dtype, (), file, base))
        try:
            node = strided(array, numel, tensor.offset, tensor.shape, tensor.strides)
        except ValueError as error:
            raise CheckpointError(f"{label}: tensor {shown(name)} {error}") from error
        taken += sum(len(below.attributes[1]) for below in walk(node) if below.op == "take")
        if taken > _MOST_TAKEN:
            raise CheckpointError(
                f"{label}: too many tensors in it leave out elements: save them with contiguous()"
            )
        plain = node.op == "stored"
        weights.append(node.stored if plain else Derived(source, name, dtype, node))
    return tuple(weights)


def _array(start: Stored, first: int, shape: Shape) -> Node:
    """The row-major array from element `first` on of what begins at `start`."""
    offset = start.offset + first * start.dtype.itemsize
    return algebra.stored(replace(start, shape=shape, offset=offset))
