"""The journal of finished chunks: what a killed run leaves for the next one.

A text file: a line with the key of the run, then a line for each finished block, ``tensor
first-chunk digest digest ...``, each digest with the chunk's note before it. It is appended to with
single writes, so that a killed process leaves at most one incomplete last line, and a chunk and
its note are there together or not at all. Nothing of it is believed unseen: the next run hashes
what the journal claims.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import xxhash

_VERSION = "mergeengine journal 2"
_DIGITS = 32  # of a digest, in hexadecimal


@dataclass(frozen=True, slots=True)
class Claim:
    """One chunk that the journal says is in the file, with its digest (16 bytes), and its note."""

    tensor: int
    chunk: int
    digest: bytes
    note: str = ""


def chunk_digest(data: memoryview | bytes) -> bytes:
    """XXH3-128 of a chunk's bytes: fast, and not meant against forgery."""
    return xxhash.xxh3_128_digest(data)


class Journal:
    """Open for appending; ``record`` may be called from many threads."""

    def __init__(self, path: Path, key: str) -> None:
        self._lock = Lock()
        fresh = read_key(path) != key
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(path, flags | (os.O_TRUNC if fresh else 0), 0o666)
        # A newline first ends an incomplete line that a killed run may have left.
        self._append(f"{_VERSION} {key}\n" if fresh else "\n")

    def record(
        self, tensor: int, first: int, digests: list[bytes], notes: Sequence[str] = ()
    ) -> None:
        """Say that consecutive chunks are written. ``notes`` are texts without white space, of the
        first of them."""
        told = [*notes, *[""] * (len(digests) - len(notes))]
        words = (note + digest.hex() for note, digest in zip(told, digests, strict=True))
        self._append(" ".join([str(tensor), str(first), *words]) + "\n")

    def close(self) -> None:
        os.close(self._descriptor)

    def _append(self, text: str) -> None:
        data = text.encode()
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]


def read_key(path: Path) -> str | None:
    """The key of the run that wrote a journal; None where there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            line = file.readline(4096)
    except OSError:
        return None
    prefix = _VERSION + " "
    return line[len(prefix) : -1] if line.startswith(prefix) and line.endswith("\n") else None


def read_claims(path: Path) -> Iterator[Claim]:
    """Every well-formed claim; a chunk that was written twice appears twice, the last counts."""
    try:
        file = path.open(encoding="utf-8", errors="replace")
    except OSError:
        return
    with file:
        next(file, None)
        for line in file:
            words = line.split()
            if not line.endswith("\n") or len(words) < 3:
                continue
            try:
                tensor, first = int(words[0]), int(words[1])
                digests = [bytes.fromhex(word[-_DIGITS:]) for word in words[2:]]
            except ValueError:
                continue
            if tensor < 0 or first < 0 or any(len(digest) != _DIGITS // 2 for digest in digests):
                continue
            for number, (digest, word) in enumerate(zip(digests, words[2:], strict=True)):
                yield Claim(tensor, first + number, digest, word[:-_DIGITS])
