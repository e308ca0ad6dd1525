"""``mergeengine.json``: what an output is made of and how to check it.

Only facts that are the same on every machine: no times, no hosts, no absolute paths.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mergeengine.errors import VerificationError

MANIFEST = "mergeengine.json"
_FORMAT = 1
_MOST_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Model:
    """An input: its role, the reference as written, and what it was (commit or fingerprint)."""

    role: str
    reference: str
    content: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is sealed into an output.

    ``identity`` is the digest of everything that decides the output's bytes; two runs of equal
    identity give equal bytes. ``tensors`` are digests of the values, ``weights`` the sizes of the
    shards, ``companions`` the SHA-256 of every other file. ``fingerprint`` is the sampled digest
    by which an output is recognised quickly. ``findings`` is what was found of the numbers, and
    told: ``precision``, ``not_finite`` and ``warnings``.
    """

    engine: str
    identity: str
    plan: Mapping[str, Any]
    models: tuple[Model, ...]
    decisions: Mapping[str, Any]
    tensors: Mapping[str, str]
    weights: Mapping[str, int]
    companions: Mapping[str, str]
    fingerprint: str
    findings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of the findings, which hold as long as the output does."""
        found = self.findings.get("warnings")
        return tuple(map(str, found)) if isinstance(found, list) else ()

    def to_bytes(self) -> bytes:
        document = {"format": _FORMAT, **asdict(self)}
        return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None where it has none. VerificationError if it is not one."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise VerificationError(f"{path}: far too large for a manifest")
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise VerificationError(f"{path}: not a readable manifest ({error})") from error
    try:
        if document.pop("format") != _FORMAT:
            raise VerificationError(f"{path}: written by another version of mergeengine")
        models = tuple(Model(**model) for model in document.pop("models"))
        manifest = Manifest(models=models, **document)
        names = ("tensors", "weights", "companions", "plan", "findings")
        if not all(isinstance(getattr(manifest, name), dict) for name in names):
            raise TypeError("a mapping was expected")
    except (TypeError, KeyError, AttributeError) as error:
        raise VerificationError(f"{path}: not a manifest of mergeengine ({error})") from error
    return manifest


def file_digest(path: Path) -> str:
    """SHA-256 of a small file, as in ``companions``."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
