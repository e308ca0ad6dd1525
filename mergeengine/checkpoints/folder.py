"""Which files are a model's weights, and a local folder that nothing may point out of."""

import os
import stat
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mergeengine.checkpoints.documents import listing, parse_object, shown
from mergeengine.checkpoints.weight_file import SUFFIXES
from mergeengine.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What is taken, in transformers' order: one file, or an index of files with this ending.
_KINDS = (
    (SINGLE, INDEX, ".safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", ".bin"),
)
SINGLES = tuple(single for single, _, _ in _KINDS)
WHOLE = (*SINGLES, *(index for _, index, _ in _KINDS))  # names by which a model has weights

_EXPECTED = f"{SINGLE}, {INDEX}, or pytorch_model.bin or its index"
# What trainers leave beside weights: arguments, and states of optimizers and random generators.
_TRAINING_STATE = (
    "training_args",
    "optimizer",
    "scheduler",
    "scaler",
    "rng_state",
    "random_states",
)
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

MAX_DOCUMENT = 100_000_000  # bytes of an index or a config
_WEIGHT_SUFFIXES = (
    *SUFFIXES, ".safetensors.index.json", ".bin.index.json", ".gguf", ".ggml", ".h5", ".msgpack",
    ".onnx", ".onnx_data", ".npz", ".tflite", ".ot",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Weights:
    """The files of a model's weights, in name order; with an index, which tensor is in which."""

    files: tuple[str, ...]
    weight_map: Mapping[str, str] | None = None


def find_weights(
    label: str,
    names: Collection[str],
    read: Callable[[str], bytes],
    way_out: str = "copy or download them again",
) -> Weights:
    """The weights of a model that has the files `names`: what its canonical names say, no more.

    `model.safetensors` comes before an index, as transformers has it: a folder saved into twice
    then means the same to both. Files of torch come after both, so that of a model in two formats
    the one is read that needs no unpickling.
    """
    named = next((kind for kind in _KINDS if kind[0] in names or kind[1] in names), None)
    if named is None:
        raise CheckpointError(_no_weights(label, names))
    single, index, suffix = named
    if single in names:
        return Weights((single,))
    weight_map = _weight_map(
        parse_object(read(index), f"{label}: {index}"), f"{label}: {index}", suffix
    )
    files = tuple(sorted(set(weight_map.values())))
    missing = [name for name in files if name not in names]
    if missing:
        raise CheckpointError(
            f"{label}: {len(missing)} of the {len(files)} files that {index} names are missing: "
            f"{listing(missing, limit=len(missing))}; {way_out}"
        )
    return Weights(files, weight_map)


def find_adapter(label: str, names: Collection[str]) -> Weights:
    """The weights of a PEFT adapter, which are one file."""
    if ADAPTER_CONFIG not in names:
        there = listing(sorted(names)) if names else "nothing"
        raise CheckpointError(
            f"{label} is no PEFT adapter: expected {ADAPTER_CONFIG} and {ADAPTER}, found {there}"
        )
    for name in (ADAPTER, "adapter_model.bin"):
        if name in names:
            return Weights((name,))
    raise CheckpointError(
        f"{label} has no {ADAPTER} beside its {ADAPTER_CONFIG}: copy or download it again"
    )


def is_companion(name: str) -> bool:
    """Whether a file is one of the small ones around the weights (config, tokenizer, code...)."""
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") for part in parts)
    return not hidden and not name.lower().endswith(_WEIGHT_SUFFIXES)


def _is_training_state(name: str) -> bool:
    return name.startswith(_TRAINING_STATE)


def _weight_map(index: Mapping[str, Any], label: str, suffix: str) -> Mapping[str, str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{label}: expected a weight_map that names the file of each tensor, found "
            f"{shown(weight_map)}"
        )
    plain: set[str] = set()  # few files hold many tensors
    for name, file in weight_map.items():
        if not name or not name.isprintable():
            raise CheckpointError(f"{label}: {shown(name)} is not a usable tensor name")
        if isinstance(file, str) and file in plain:
            continue
        if not isinstance(file, str) or not _is_plain(file) or not file.endswith(suffix):
            raise CheckpointError(
                f"{label}: tensor {shown(name)} is said to lie in {shown(file)}: expected the "
                f"plain name of a {suffix} file in the same folder"
            )
        plain.add(file)
    return weight_map


def _is_plain(name: str) -> bool:
    return name.isprintable() and not name.startswith(".") and not set(name) & set('/\\:"')


def _no_weights(label: str, names: Collection[str]) -> str:
    """The sentence for a model without readable weights, by what is there instead."""

    def some(*suffixes: str) -> list[str]:
        return sorted(name for name in names if "/" not in name and name.endswith(suffixes))

    if ADAPTER_CONFIG in names:
        return (
            f"{label} is an adapter ({ADAPTER_CONFIG}), not a whole model: as a fine-tune, write "
            f"`source_ft: {{adapter: {label}, base: the model it adapts}}`; elsewhere, merge it "
            "into its base first"
        )
    if gguf := some(".gguf"):
        return (
            f"{label} has its weights only as GGUF ({listing(gguf, 4)}), which cannot be merged: "
            "use the safetensors checkpoint it was made from"
        )
    if others := [name for name in some(*SUFFIXES) if not _is_training_state(name)]:
        return (
            f"{label} has no file of a name by which it would be known as the weights "
            f"({_EXPECTED}); to use one file, name the file itself (there are {listing(others)})"
        )
    there = listing(sorted(names)) if names else "nothing"
    return f"{label} has no weights: expected {_EXPECTED}, found {there}"


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A model in a folder of this machine."""

    path: Path

    def names(self) -> tuple[str, ...]:
        """Files of the folder and of its direct subfolders, without hidden ones, sorted."""
        found = []
        for name, is_folder in _scan(self.path):
            if is_folder:
                inner = _scan(self.path / name)
                found += [f"{name}/{file}" for file, is_deeper in inner if not is_deeper]
            else:
                found.append(name)
        return tuple(sorted(found))

    def file(self, name: str) -> Path:
        """The path of a file, which must be a regular one inside the folder.

        Links may lead elsewhere inside the folder or, in a hub cache
        (``<repo>/snapshots/<commit>/<name>``), to its ``blobs``.
        """
        path = self.path / name
        try:
            target, folder = path.resolve(strict=True), self.path.resolve(strict=True)
            regular = stat.S_ISREG(target.stat().st_mode)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be read: {_reason(error)}") from error
        allowed = [folder]
        if folder.parent.name == "snapshots":
            repo = folder.parent.parent
            allowed.append(repo / "blobs")
            if repo.name.startswith("models--"):  # blobs may lie once for all repositories
                allowed.append(repo.parent / "blobs")
        if not any(target.is_relative_to(root) for root in allowed):
            raise CheckpointError(
                f"{path} is a link to {target}, outside its model's folder: put the file itself "
                "there, or name the folder in which it lies"
            )
        if not regular:
            raise CheckpointError(f"{path} is not a regular file")
        return path

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        path = self.file(name)
        try:
            if path.stat().st_size > MAX_DOCUMENT:
                raise CheckpointError(f"{path} is implausibly large for a file of its name")
            return path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {_reason(error)}") from error

    def companions(self) -> tuple[str, ...]:
        return tuple(name for name in self.names() if is_companion(name))

    def companion(self, name: str) -> Path | None:
        return self.file(name) if os.path.lexists(self.path / name) else None


def _scan(folder: Path) -> list[tuple[str, bool]]:
    """Entries that are not hidden, and whether each is a folder (a link never is)."""
    try:
        with os.scandir(folder) as entries:
            return [
                (entry.name, entry.is_dir(follow_symlinks=False))
                for entry in entries
                if not entry.name.startswith(".")
            ]
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
