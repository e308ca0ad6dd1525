"""The sink of a run: chunks go to their fixed places, are hashed, and are journalled."""

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from threading import Lock

import xxhash

from mergeengine.errors import OutputError
from mergeengine.lazy.partition import CHUNK, chunk_count
from mergeengine.output.journal import Claim, Journal, chunk_digest, read_claims, read_key
from mergeengine.output.layout import Layout, Placed
from mergeengine.output.workspace import Workspace, output_error

Recall = Callable[[int, int, str], bool]
"""Told of a chunk that an earlier run left whole (tensor, chunk, note): whether it is kept."""

_REHASHERS = 4
_BATCH = 64


class ShardWriter:
    """Writes a layout's shards in the workspace; goes on where an earlier run with ``key`` was.

    ``key`` stands for the graph, the layout and the inputs' identity: what another key left is
    thrown away, and so is what ``recall`` does not want. Every OSError becomes an OutputError that
    says what to do.
    """

    def __init__(
        self,
        workspace: Workspace,
        layout: Layout,
        key: str,
        recall: Recall = lambda tensor, chunk, note: True,
    ) -> None:
        self._workspace = workspace
        self._layout = layout
        self._descriptors: list[int] = []
        self._digests: list[dict[int, bytes]] = [{} for _ in layout.tensors]
        self._lock = Lock()
        try:
            if read_key(workspace.journal) != key or workspace.files.is_symlink():
                workspace.start_over()
            workspace.files.mkdir(exist_ok=True)
            for shard in layout.shards:
                self._descriptors.append(_allocate(workspace.files / shard.name, shard.size))
            self._recall(recall)
            self._journal = Journal(workspace.journal, key)
            for descriptor, shard in zip(self._descriptors, layout.shards, strict=True):
                _write_at(descriptor, 0, memoryview(shard.header))
        except OSError as error:
            self._close_files()
            if not workspace.journal.exists():  # no work is lost, and the space is needed
                workspace.start_over()
            raise output_error(workspace.files, error) from error

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._journal.close()
        self._close_files()

    @property
    def kept_bytes(self) -> int:
        """Bytes of chunks that are there from an earlier run."""
        return sum(
            len(_chunk_range(tensor, chunk))
            for tensor, digests in zip(self._layout.tensors, self._digests, strict=True)
            for chunk in digests
        )

    def is_done(self, tensor: int, chunk: int) -> bool:
        return chunk in self._digests[tensor]

    def place(self, tensor: int, chunk: int) -> tuple[int, int]:
        """The open file that a chunk lies in, and its byte offset there."""
        placed = self._layout.tensors[tensor]
        return self._descriptors[placed.shard], _chunk_range(placed, chunk).start

    def write(
        self, tensor: int, first_chunk: int, data: memoryview, notes: Sequence[str] = ()
    ) -> None:
        try:
            _write_at(*self.place(tensor, first_chunk), data)
        except OSError as error:
            raise self.failed(tensor, error) from error
        size = CHUNK * self._layout.tensors[tensor].dtype.itemsize
        digests = [chunk_digest(data[start : start + size]) for start in range(0, len(data), size)]
        self.record(tensor, first_chunk, digests or [chunk_digest(b"")], notes)

    def record(
        self, tensor: int, first_chunk: int, digests: list[bytes], notes: Sequence[str] = ()
    ) -> None:
        """Journal chunks that are in their place; ``digests`` are those of ``chunk_digest``, and
        ``notes`` come back with them in another run."""
        try:
            self._journal.record(tensor, first_chunk, digests, notes)
        except OSError as error:
            raise self.failed(tensor, error) from error
        with self._lock:
            self._digests[tensor].update(enumerate(digests, first_chunk))

    def failed(self, tensor: int, error: OSError) -> OutputError:
        """What an error of the system means for the shard of a tensor."""
        name = self._layout.shards[self._layout.tensors[tensor].shard].name
        return output_error(self._workspace.files / name, error)

    def sync(self) -> None:
        """Wait until all shards are on the disk."""
        try:
            for descriptor in self._descriptors:
                os.fsync(descriptor)
        except OSError as error:
            raise output_error(self._workspace.files, error) from error

    def digests(self) -> dict[str, str]:
        """Tensor name to digest: XXH3-128 over the digests of its chunks."""
        result = {}
        for tensor, digests in zip(self._layout.tensors, self._digests, strict=True):
            count = chunk_count(tensor.nbytes // tensor.dtype.itemsize)
            assert len(digests) == count, f"{tensor.name}: {len(digests)} of {count} chunks"
            result[tensor.name] = tensor_digest(digests[chunk] for chunk in range(count))
        return result

    def _recall(self, recall: Recall) -> None:
        """Believe those of the journal's claims whose bytes are in the files."""
        claims: dict[tuple[int, int], Claim] = {}
        for claim in read_claims(self._workspace.journal):
            if claim.tensor < len(self._layout.tensors):
                tensor = self._layout.tensors[claim.tensor]
                if claim.chunk < chunk_count(tensor.nbytes // tensor.dtype.itemsize):
                    claims[claim.tensor, claim.chunk] = claim

        def holds(claim: Claim) -> bool:
            tensor = self._layout.tensors[claim.tensor]
            place = _chunk_range(tensor, claim.chunk)
            data = _read_at(self._descriptors[tensor.shard], len(place), place.start)
            return len(data) == len(place) and chunk_digest(data) == claim.digest

        remaining = iter(claims.values())
        with ThreadPoolExecutor(_REHASHERS) as pool:
            while batch := list(islice(remaining, _BATCH)):
                for claim, true in zip(batch, pool.map(holds, batch), strict=True):
                    if true and recall(claim.tensor, claim.chunk, claim.note):
                        self._digests[claim.tensor][claim.chunk] = claim.digest

    def _close_files(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()


def tensor_digest(digests: Iterable[bytes]) -> str:
    """The digest of a tensor from those of its chunks, in order."""
    return f"xxh3:{xxhash.xxh3_128_hexdigest(b''.join(digests))}"


def _chunk_range(tensor: Placed, chunk: int) -> range:
    size = CHUNK * tensor.dtype.itemsize
    start = tensor.offset + chunk * size
    return range(start, min(start + size, tensor.offset + tensor.nbytes))


def _allocate(path: Path, size: int) -> int:
    """Open a file of that size, with its space taken from the disk now and not in the middle."""
    with suppress(FileNotFoundError):
        status = path.lstat()
        if not S_ISREG(status.st_mode) or status.st_nlink > 1:
            path.unlink()  # a link: writing would change what it leads to
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        if os.fstat(descriptor).st_size != size:
            os.ftruncate(descriptor, size)
        fallocate: Callable[[int, int, int], None] | None = getattr(os, "posix_fallocate", None)
        if fallocate is not None:
            try:
                fallocate(descriptor, 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
    except OSError as error:
        os.close(descriptor)
        error.filename = str(path)
        raise
    return descriptor


if hasattr(os, "pwrite"):

    def _write_at(descriptor: int, offset: int, data: memoryview) -> None:
        while data:
            count = os.pwrite(descriptor, data, offset)
            data, offset = data[count:], offset + count

    def _read_at(descriptor: int, size: int, offset: int) -> bytes:
        return os.pread(descriptor, size, offset)

else:  # no positional calls (Windows): one at a time moves the file's position
    _position = Lock()

    def _write_at(descriptor: int, offset: int, data: memoryview) -> None:
        with _position:
            os.lseek(descriptor, offset, os.SEEK_SET)
            while data:
                data = data[os.write(descriptor, data) :]

    def _read_at(descriptor: int, size: int, offset: int) -> bytes:
        with _position:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, size)
