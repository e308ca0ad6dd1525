"""Small files beside the weights, as values: what will be written, and what to tell about it."""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.small_files import open_file

TEMPLATE_FOLDER = "additional_chat_templates"

_PLAIN_NAME = re.compile(rf"(?:{TEMPLATE_FOLDER}/)?[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*")


@dataclass(frozen=True, slots=True)
class Spliced:
    """An input file's bytes, with others put in: before those of each offset, which ascend."""

    file: Path
    inserted: tuple[tuple[int, bytes], ...]

    def open(self) -> BinaryIO:
        return io.BufferedReader(_Joined(self._parts()))

    def _parts(self) -> Iterator[bytes]:
        with open_file(self.file) as file:
            for offset, more in self.inserted:
                yield from _read(file, offset - file.tell())
                yield more
            yield from _read(file, self.file.stat().st_size - file.tell())


def _read(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (part := file.read(min(size, 1 << 20))):
        yield part
        size -= len(part)


class _Joined(io.RawIOBase):
    """Parts one after the other as one stream."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._left = memoryview(part)
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


@dataclass(frozen=True, slots=True)
class Companion:
    """One file of the output: its bytes, or the input file whose bytes it takes."""

    name: str
    content: bytes | Path | Spliced

    @property
    def size(self) -> int:
        if isinstance(self.content, bytes):
            return len(self.content)
        if isinstance(self.content, Spliced):
            added = sum(len(more) for _, more in self.content.inserted)
            return self.content.file.stat().st_size + added
        return self.content.stat().st_size

    def digest(self) -> str:
        """SHA-256 of its bytes."""
        digest = hashlib.sha256()
        with self.open() as file:
            while part := file.read(1 << 20):
                digest.update(part)
        return f"sha256:{digest.hexdigest()}"

    def open(self) -> BinaryIO:
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        if isinstance(self.content, Spliced):
            return self.content.open()
        return open_file(self.content)


@dataclass(frozen=True, slots=True)
class CompanionSet:
    """Files by name; what was done (notes) and what may be wrong (warnings), in plain sentences."""

    files: tuple[Companion, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def joined(parts: Iterable[CompanionSet]) -> CompanionSet:
    """All parts as one set, files sorted by name; of two files of one name the first stays."""
    files: dict[str, Companion] = {}
    notes: list[str] = []
    warnings: list[str] = []
    for part in parts:
        for file in part.files:
            files.setdefault(file.name, file)
        notes += part.notes
        warnings += part.warnings
    return CompanionSet(tuple(files[name] for name in sorted(files)), tuple(notes), tuple(warnings))


def candidates(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names that may be copied: plain, in the folder itself or among its chat templates."""
    return tuple(sorted(filter(_PLAIN_NAME.fullmatch, checkpoint.companions())))


def copies(checkpoint: Checkpoint, names: Iterable[str]) -> tuple[Companion, ...]:
    """The named files as they are in the checkpoint."""
    paths = ((name, checkpoint.companion(name)) for name in names)
    return tuple(Companion(name, path) for name, path in paths if path is not None)


def json_bytes(value: dict[str, Any]) -> bytes:
    """Indented as the hub's files are, keys in the order they came in."""
    return (json.dumps(value, indent=2) + "\n").encode()
