"""What lies at the output's place already: up to date, ours to replace, or somebody's work."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mergeengine.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mergeengine.errors import MergeEngineError, OutputError, VerificationError
from mergeengine.lazy.partition import CHUNK, chunk_count
from mergeengine.lazy.stored import Stored
from mergeengine.output.journal import chunk_digest
from mergeengine.output.manifest import MANIFEST, Manifest, file_digest, read_manifest
from mergeengine.output.writer import tensor_digest

State = Literal["absent", "up to date", "earlier version", "modified", "foreign"]

_READERS = 4


@dataclass(frozen=True, slots=True)
class Existing:
    """The state of an output's place, and the reason in a sentence."""

    state: State
    reason: str


def look(output: Path, name: str, identity: str, inputs: Iterable[Checkpoint] = ()) -> Existing:
    """Judge what is there by its manifest and a sample of its bytes; nothing is read whole.

    An input file that was written after the output makes it out of date, whatever its sample
    says: a sample cannot see every change.
    """
    if output.is_symlink():
        return Existing("foreign", "it is a symbolic link; name the folder itself")
    if not output.exists():
        return Existing("absent", "there is no output yet")
    if output.is_dir() and not any(output.iterdir()):
        return Existing("absent", "the folder is empty")
    try:
        manifest = read_manifest(output) if output.is_dir() else None
    except VerificationError as error:
        return Existing("foreign", str(error))
    if manifest is None:
        return Existing("foreign", "it was not made by mergeengine")
    changed = quick_changes(output, manifest)
    if changed:
        return Existing("modified", changed)
    if manifest.identity == identity:
        newer = _written_since(output, inputs)
        if newer is None:
            return Existing("up to date", "plan and inputs are those that made it")
        return Existing("earlier version", f"{newer} was written after it")
    if manifest.plan.get("name", name) == name:
        return Existing("earlier version", _difference(manifest))
    return Existing("foreign", f"it was made by another plan ({manifest.plan.get('name')})")


def may_replace(output: Path, existing: Existing, progress: Callable[[int], None]) -> None:
    """OutputError unless the output is unmodified, to the last byte, and of this plan."""
    reason = existing.reason
    if existing.state == "earlier version":
        differences = verify(output, progress)
        if not differences:
            return
        reason = differences[0]
    raise OutputError(
        f"{output}: exists and will not be replaced: {reason}. Use --force to replace it, or "
        "--output to write somewhere else"
    )


def check_apart(output: Path, inputs: Iterable[Checkpoint]) -> None:
    """OutputError where an input lies in the output's folder: replacing it would delete it."""
    place = output.resolve()
    for model in inputs:
        local = (file.local for file in model.files if not file.is_remote)
        if any(path.resolve().is_relative_to(place) for path in local):
            raise OutputError(
                f"{output}: the input {model} lies there; choose a folder of its own for the output"
            )


def verify(
    output: str | os.PathLike[str], progress: Callable[[int], None] | None = None
) -> list[str]:
    """Every difference between an output and its manifest, one sentence each; all bytes are read.

    An empty list says that the output is what was written.

    ``progress`` is called with the bytes of each tensor that was checked.
    """
    output = Path(output)
    manifest = read_manifest(output)
    if manifest is None:
        raise VerificationError(f"{output}: there is no {MANIFEST}: not an output of mergeengine")
    differences = _companion_differences(output, manifest)
    if not manifest.weights:
        return differences
    try:
        checkpoint = open_checkpoint(output.absolute(), weights="stored")
    except MergeEngineError as error:
        return [*differences, str(error)]
    missing = manifest.tensors.keys() - checkpoint.tensors.keys()
    extra = checkpoint.tensors.keys() - manifest.tensors.keys()
    differences.extend(f"the tensor {name} is missing" for name in sorted(missing))
    differences.extend(f"the tensor {name} was added" for name in sorted(extra))
    common = [tensor for name, tensor in checkpoint.tensors.items() if name in manifest.tensors]
    with ThreadPoolExecutor(_READERS) as pool:
        for tensor, digest in zip(common, pool.map(tensor_digest_of, common), strict=True):
            if digest != manifest.tensors[tensor.name]:
                differences.append(f"the values of {tensor.name} differ from the manifest")
            if progress is not None:
                progress(tensor.nbytes)
    if not differences and checkpoint.fingerprint() != manifest.fingerprint:
        differences.append("a header of its weights was changed")
    return differences


def tensor_digest_of(tensor: Stored) -> str:
    """The digest of a tensor as a manifest has it; all of it is read."""
    size = CHUNK * tensor.dtype.itemsize
    digests = []
    with tensor.file.local.open("rb") as file:
        file.seek(tensor.offset)
        for chunk in range(chunk_count(tensor.numel)):
            digests.append(chunk_digest(file.read(min(size, tensor.nbytes - chunk * size))))
    return tensor_digest(digests)


def _written_since(output: Path, inputs: Iterable[Checkpoint]) -> Path | None:
    made = (output / MANIFEST).stat().st_mtime_ns
    local = (model for model in inputs if model.revision is None)  # the hub's are their commit
    files = (file for model in local for file in model.files)
    return next((file.local for file in files if file.state and file.state[0] > made), None)


def quick_changes(output: Path, manifest: Manifest) -> str | None:
    """What differs from the manifest, of all files but the weights, and of a sample of these."""
    for name, size in manifest.weights.items():
        path = output / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name} is missing or has another size than when it was made"
    differences = _companion_differences(output, manifest)
    if differences:
        return differences[0]
    if not manifest.weights:
        return None
    try:
        if open_checkpoint(output).fingerprint() != manifest.fingerprint:
            return "its weights were changed since it was made"
    except MergeEngineError as error:
        return str(error)
    return None


def _companion_differences(output: Path, manifest: Manifest) -> list[str]:
    """Files beside the weights that differ, are missing, or were added."""
    differences = []
    for name, digest in manifest.companions.items():
        path = output / name
        if not path.is_file():
            differences.append(f"{name} is missing")
        elif file_digest(path) != digest:
            differences.append(f"{name} was changed")
    known = {MANIFEST, *manifest.weights, *manifest.companions}
    paths = (path for path in sorted(output.rglob("*")) if path.is_symlink() or not path.is_dir())
    there = (path.relative_to(output) for path in paths)
    differences.extend(f"{path} was added" for path in there if path.as_posix() not in known)
    return differences


def _difference(manifest: Manifest) -> str:
    return f"the plan or its inputs changed since {manifest.engine} made it"
