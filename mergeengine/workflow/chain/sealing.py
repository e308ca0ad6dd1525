"""Folders that something else than a merge has filled: their manifest, and what is in them."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergeengine.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mergeengine.output.manifest import MANIFEST, Manifest, Model, file_digest
from mergeengine.output.workspace import output_error
from mergeengine.values.digests import digest_of
from mergeengine.workflow.accompany import CARD
from mergeengine.workflow.existing import tensor_digest_of

_READERS = 4


def content_of(manifest: Manifest) -> str:
    """A digest of what a sealed output holds: every tensor and file, but the card, which tells."""
    beside = {name: digest for name, digest in manifest.companions.items() if name != CARD}
    return digest_of([dict(manifest.tensors), beside])


def content_of_model(model: Checkpoint) -> str:
    """What a model is that no manifest tells of: a commit, or its sampled digest and the digests
    of the files beside its weights."""
    if model.revision is not None:
        return model.fingerprint()
    names = sorted(name for name in model.companions() if name not in (CARD, MANIFEST))
    paths = {name: model.companion(name) for name in names}
    beside = {name: file_digest(path) for name, path in paths.items() if path is not None}
    return digest_of([model.fingerprint() if model.files else "", beside])


def seal(
    folder: Path, name: str, identity: str, parts: Mapping[str, Any], *, model: bool
) -> Manifest:
    """Write the manifest of what a step left in a folder, and see that all of it is on disk.

    With ``model`` the folder holds one, whose tensors are digested; CheckpointError where it does
    not. Raises OutputError for what cannot be read or written.
    """
    checkpoint = open_checkpoint(folder) if model else None
    tensors: dict[str, str] = {}
    weights: dict[str, int] = {}
    if checkpoint is not None:
        stored = list(checkpoint.tensors.values())
        with ThreadPoolExecutor(_READERS) as pool:
            digests = pool.map(tensor_digest_of, stored)
            tensors = {each.name: d for each, d in zip(stored, digests, strict=True)}
        weights = {file.path.name: file.size for file in checkpoint.files}
    try:
        (folder / MANIFEST).unlink(missing_ok=True)  # of the model it was made from
        files = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
        names = {path.relative_to(folder).as_posix(): path for path in files}
        manifest = Manifest(
            engine=f"mergeengine {version('mergeengine')}",
            identity=identity,
            plan={"name": name, "document": {"step": dict(parts)}},
            models=tuple(
                Model(part[:-1], used, content)
                for part in ("models", "steps")
                for used, content in parts.get(part, {}).items()
            ),
            decisions={},
            tensors=tensors,
            weights=weights,
            companions={n: file_digest(path) for n, path in names.items() if n not in weights},
            fingerprint=checkpoint.fingerprint() if checkpoint is not None else "",
        )
        (folder / MANIFEST).write_bytes(manifest.to_bytes())
        for path in (*files, folder / MANIFEST):
            with path.open("rb") as file:
                os.fsync(file.fileno())
    except OSError as error:
        raise output_error(folder, error) from error
    return manifest
