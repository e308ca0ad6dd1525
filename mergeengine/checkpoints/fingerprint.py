"""A cheap digest of what a local or remote checkpoint contains.

It covers the config, every header, and a *sample* of the data: of every tensor the first or the
last KiB, and of one of 16 MiB or more always the last (where an embedding has its new rows). A
checkpoint that was trained, converted or merged anew differs in it; one whose bytes were altered
on purpose outside the samples does not. Paths, times and machines play no part, so that copies are
equal.

Tensors lie side by side, so one read of 2 KiB where two of them meet is a sample of both: what this
costs is the number of pages that a disk has to fetch, and 100,000 experts are no rarity.

Of a remote checkpoint every sample is a request. There it covers the config, where each tensor
lies, what the store tells versions apart by (ETag, time), and a few samples of each file.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import xxhash

from mergeengine.checkpoints.reading import opened, opened_file
from mergeengine.lazy.stored import RemotePath, Stored, StoredFile

_SAMPLE = 1 << 10
_LARGE = 16 << 20
_REMOTE_SAMPLES = 4  # of each file
_REQUESTS = 8  # at a time


def sampled_digest(
    headers: Mapping[StoredFile, bytes],
    tensors: Iterable[Stored],
    config: Path | None,
    in_folder: bool,
) -> str:
    """``xxh3:`` and 32 hex digits. ``headers`` are the digests of every file's, ``tensors`` come by
    ascending offset in each file.

    The name of a single file (not `in_folder`) is not content.
    """
    by_file: dict[StoredFile, list[Stored]] = {file: [] for file in headers}
    for file, together in groupby(tensors, attrgetter("file")):
        by_file[file].extend(together)
    digest = xxhash.xxh3_128()
    ordered = sorted(by_file, key=lambda file: file.path.name)
    if any(file.is_remote for file in ordered):
        with ThreadPoolExecutor(_REQUESTS) as pool:
            contents = list(pool.map(lambda file: _remote_digest(file, by_file[file]), ordered))
    else:
        contents = [_file_digest(file, headers[file], by_file[file]) for file in ordered]
    for file, content in zip(ordered, contents, strict=True):
        name = file.path.name if in_folder else ""
        _add(digest, name.encode(), str(file.size).encode(), content)
    if config is not None:
        with opened(config) as read:
            _add(digest, read(0, config.stat().st_size))
    return f"xxh3:{digest.hexdigest()}"


def _file_digest(file: StoredFile, header: bytes, tensors: Sequence[Stored]) -> bytes:
    """Of the header and the samples, whose places follow from the header."""
    digest = xxhash.xxh3_128(header)
    with opened(file.local) as read:
        for end in _sampled_ends(tensors):
            digest.update(read(max(0, end - _SAMPLE), 2 * _SAMPLE))
    return digest.digest()


def _remote_digest(file: StoredFile, tensors: Sequence[Stored]) -> bytes:
    """Of where the tensors lie, the version, and samples spread over the file."""
    assert isinstance(file.path, RemotePath)
    digest = xxhash.xxh3_128()
    for tensor in tensors:
        place = f"{tensor.dtype.code} {list(tensor.shape)} {tensor.offset}"
        _add(digest, tensor.name.encode(), place.encode())
    _add(digest, file.path.version.encode())
    ends = list(_sampled_ends(tensors))
    few = range(0, len(ends), max(1, -(-len(ends) // _REMOTE_SAMPLES)))
    with opened_file(file) as read:
        for number in few:
            digest.update(read(max(0, ends[-1 - number] - _SAMPLE), 2 * _SAMPLE))
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
