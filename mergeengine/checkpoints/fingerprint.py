"""A cheap digest of what a local checkpoint contains.

It covers the config, every header, and a *sample* of the data: 4 KiB from the middle of each
tensor and 4 KiB from its end (where rows of new tokens are), of at most 4096 tensors a file. A
checkpoint that was trained, converted or merged anew differs in it; one whose bytes were altered
on purpose outside the samples does not. Paths, times and machines play no part, so that copies are
equal.
"""

from collections.abc import Iterable
from pathlib import Path

import xxhash

from mergeengine.checkpoints.header import read_header
from mergeengine.checkpoints.reading import opened
from mergeengine.lazy.stored import Stored, StoredFile

_SAMPLE = 4096
_TENSORS = 4096


def sampled_digest(
    files: Iterable[StoredFile],
    tensors: Iterable[Stored],
    config: Path | None,
    in_folder: bool,
) -> str:
    """``xxh3:`` and 32 hex digits. The name of a single file (not `in_folder`) is not content."""
    by_file: dict[StoredFile, list[Stored]] = {file: [] for file in files}
    for tensor in tensors:
        by_file[tensor.file].append(tensor)
    digest = xxhash.xxh3_128()
    for file in sorted(by_file, key=lambda file: file.path.name):
        name = file.path.name if in_folder else ""
        _add(digest, name.encode(), str(file.size).encode())
        for sample in _samples(file, by_file[file]):  # one at a time: together they are megabytes
            _add(digest, sample)
    if config is not None:
        with opened(config) as read:
            _add(digest, read(0, config.stat().st_size))
    return f"xxh3:{digest.hexdigest()}"


def _samples(file: StoredFile, tensors: list[Stored]) -> Iterable[bytes]:
    step = -(-len(tensors) // _TENSORS) or 1
    with opened(file.path) as read:
        yield xxhash.xxh3_128(read_header(read, file.size, str(file.path))).digest()
        for tensor in tensors[::step]:
            size = min(_SAMPLE, tensor.nbytes)
            yield read(tensor.offset + (tensor.nbytes - size) // 2, size)
            if tensor.nbytes > size:
                yield read(tensor.offset + tensor.nbytes - size, size)


def _add(digest: xxhash.xxh3_128, *parts: bytes) -> None:
    """Each part with its length, so that no two sequences of parts look alike."""
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
