"""One file of weights in any format that is read, by its header alone."""

from dataclasses import dataclass

import xxhash

from mergeengine.checkpoints.documents import listing, shown
from mergeengine.checkpoints.header import parse_header, read_header
from mergeengine.checkpoints.reading import Read
from mergeengine.errors import CheckpointError
from mergeengine.lazy.stored import StoredFile
from mergeengine.lazy.weight import Weight

TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".jit")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
_NO_WAY = {
    ".onnx": "in ONNX weights were folded and renamed: use the model that it was exported from",
    ".gguf": "GGUF is quantised: use the safetensors checkpoint that it was made from",
    ".h5": "it is TensorFlow's: load it with transformers (from_tf=True) and save_pretrained",
    ".msgpack": "it is Flax's: load it with transformers (from_flax=True) and save_pretrained",
}


@dataclass(frozen=True, slots=True)
class WeightFile:
    """What a file says it holds: weights by ascending offset, a digest of the header, and what is
    to be known of how it was read."""

    file: StoredFile
    weights: tuple[Weight, ...]
    header: bytes
    notes: tuple[str, ...] = ()


def read_weight_file(read: Read, file: StoredFile, source: str, label: str) -> WeightFile:
    """Read a file's header in the format that its name says; `label` names it in messages."""
    suffix = "." + file.path.name.rpartition(".")[2]
    if suffix == ".safetensors":
        text = read_header(read, file.size, label)
        return WeightFile(
            file, parse_header(text, file, source, label), xxhash.xxh3_128_digest(text)
        )
    if suffix not in TORCH_SUFFIXES:
        raise CheckpointError(
            f"{label}: {_NO_WAY.get(suffix, f'expected a file of weights ({listing(SUFFIXES)})')}"
        )
    from mergeengine.checkpoints.torch_files import read_torch_file

    found = read_torch_file(read, file, source, label)
    keys = "".join(f"[{shown(key)}]" for key in found.within)
    notes = (f"{file.path.name}: the weights are those in {keys}",) if keys else ()
    return WeightFile(file, found.weights, found.header, notes)
