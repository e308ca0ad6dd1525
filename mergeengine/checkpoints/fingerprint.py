"""A cheap digest of what a local checkpoint contains.

It covers the config, every header, and a *sample* of the data: of every tensor the first or the
last KiB, and of one of 16 MiB or more always the last (where an embedding has its new rows). A
checkpoint that was trained, converted or merged anew differs in it; one whose bytes were altered
on purpose outside the samples does not. Paths, times and machines play no part, so that copies are
equal.

Tensors lie side by side, so one read of 2 KiB where two of them meet is a sample of both: what this
costs is the number of pages that a disk has to fetch, and 100,000 experts are no rarity.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import xxhash

from mergeengine.checkpoints.header import read_header
from mergeengine.checkpoints.reading import opened
from mergeengine.lazy.stored import Stored, StoredFile

_SAMPLE = 1 << 10
_LARGE = 16 << 20


def sampled_digest(
    files: Iterable[StoredFile],
    tensors: Iterable[Stored],
    config: Path | None,
    in_folder: bool,
) -> str:
    """``xxh3:`` and 32 hex digits; ``tensors`` by ascending offset in each file.

    The name of a single file (not `in_folder`) is not content.
    """
    by_file: dict[StoredFile, list[Stored]] = {file: [] for file in files}
    for file, together in groupby(tensors, attrgetter("file")):
        by_file[file].extend(together)
    digest = xxhash.xxh3_128()
    for file in sorted(by_file, key=lambda file: file.path.name):
        name = file.path.name if in_folder else ""
        content = _file_digest(file, by_file[file])
        _add(digest, name.encode(), str(file.size).encode(), content)
    if config is not None:
        with opened(config) as read:
            _add(digest, read(0, config.stat().st_size))
    return f"xxh3:{digest.hexdigest()}"


def _file_digest(file: StoredFile, tensors: Sequence[Stored]) -> bytes:
    """Of the header and the samples, whose places follow from the header."""
    with opened(file.path) as read:
        digest = xxhash.xxh3_128(read_header(read, file.size, str(file.path)))
        for end in _sampled_ends(tensors):
            digest.update(read(max(0, end - _SAMPLE), 2 * _SAMPLE))
    return digest.digest()


def _sampled_ends(tensors: Sequence[Stored]) -> Iterator[int]:
    """The ends around which a sample is taken: of a tensor whose beginning is not in one yet."""
    seen = 0
    for tensor in tensors:
        start, size = tensor.offset, tensor.nbytes
        if start + min(size, _SAMPLE) > seen or (size >= _LARGE and start + size > seen):
            yield start + size
            seen = start + size + _SAMPLE


def _add(digest: xxhash.xxh3_128, *parts: bytes) -> None:
    """Each part with its length, so that no two sequences of parts look alike."""
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
