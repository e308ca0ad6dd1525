"""Reading byte ranges of input files, and noticing when a file changes under us."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from mergeengine.compiler.transfer import Transfers
from mergeengine.errors import CheckpointError, InputChangedError
from mergeengine.lazy.stored import StoredFile

if TYPE_CHECKING:
    from mergeengine.execution.ahead import ReadAhead

_REQUESTS = 8  # at a time, to see whether remote files changed

FileState = tuple[int, int, int]


class Reader:
    """Positional reads into caller-owned buffers, safe from many threads.

    A file must be what it was when its header was read. Files stay open, up to ``most_open``: the
    least recently used are closed beyond that. Remote files are read through the buffer of
    ``transfers``.
    """

    def __init__(self, transfers: Transfers | None = None, most_open: int = 256) -> None:
        self._remote = None if transfers is None else _read_ahead(transfers)
        self._remote_files: set[StoredFile] = set()
        self._most_open = most_open
        self._open: dict[Path, int] = {}
        self._states: dict[Path, FileState] = {}
        self._in_use: dict[Path, int] = {}
        self._lock = Lock()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def read_into(self, file: StoredFile, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``; an early end or a changed file is an error."""
        self.gather(file, [(offset, buffer)])

    def gather(self, file: StoredFile, parts: Iterable[tuple[int, memoryview]]) -> None:
        """Fill each buffer from its offset, as ``read_into``: many small reads at little cost."""
        if file.is_remote:
            assert self._remote is not None, "a reader that knows nothing of remote files"
            self._remote_files.add(file)
            for offset, buffer in parts:
                self._remote.read_into(file, offset, buffer)
            return
        descriptor = self.acquire(file)
        try:
            for offset, buffer in parts:
                done = _pread_into(descriptor, buffer, offset)
                while done < len(buffer):
                    count = _pread_into(descriptor, buffer[done:], offset + done)
                    if count == 0:
                        raise self.ended(file, offset + done)
                    done += count
        except OSError as error:
            raise self.unreadable(file, error.strerror) from error
        finally:
            self.release(file)

    @staticmethod
    def ended(file: StoredFile, offset: int) -> InputChangedError:
        """The error of a file that is shorter than it was."""
        return InputChangedError(
            f"{file.path}: the file ends at byte {offset}, although its header promised more: it "
            "was truncated while it was being read"
        )

    @staticmethod
    def unreadable(file: StoredFile, reason: str | None) -> CheckpointError:
        """The error of a file that the system cannot read."""
        return CheckpointError(f"{file.path}: cannot be read: {reason}")

    def check_unchanged(self) -> None:
        """Raise InputChangedError if a file that was read is not what it was when opened.

        Others may be reading, and opening more files, meanwhile.
        """
        if self._remote_files:
            from mergeengine.checkpoints.remote import check_unchanged

            with ThreadPoolExecutor(_REQUESTS) as pool:
                list(pool.map(check_unchanged, tuple(self._remote_files)))
        with self._lock:
            states = dict(self._states)
        for path, state in states.items():
            try:
                now = _state(path.stat())
            except OSError as error:
                raise InputChangedError(f"{path}: disappeared while it was being read") from error
            if now != state:
                raise InputChangedError(
                    f"{path}: changed while it was being read (size, time or inode differ); "
                    "nothing was written under the final name. Run again when it is complete"
                )

    @property
    def transferred(self) -> int:
        """Bytes that came over a network so far."""
        return self._remote.fetched if self._remote is not None else 0

    def stop(self) -> None:
        """Let no worker wait for a network any longer."""
        if self._remote is not None:
            self._remote.stop()

    def close(self) -> None:
        """Close every file."""
        if self._remote is not None:
            self._remote.close()
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()

    def acquire(self, file: StoredFile) -> int:
        """The file's descriptor, which stays open until ``release``."""
        path = file.local
        with self._lock:
            descriptor = self._open.pop(path, None)
            if descriptor is None:
                descriptor = self._open_file(file)
                self._evict()
            self._open[path] = descriptor  # most recently used last
            self._in_use[path] = self._in_use.get(path, 0) + 1
            return descriptor

    def release(self, file: StoredFile) -> None:
        """One user less."""
        with self._lock:
            self._in_use[file.local] -= 1

    def _open_file(self, file: StoredFile) -> int:
        try:
            descriptor = os.open(file.local, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise CheckpointError(f"{file.path}: cannot be opened: {error.strerror}") from error
        state = _state(os.fstat(descriptor))
        known = self._states.setdefault(
            file.local, (file.size, *file.state) if file.state else state
        )
        if known != state or file.size != state[0]:
            os.close(descriptor)
            raise InputChangedError(
                f"{file.path}: changed since its header was read (expected {file.size} bytes, "
                f"found {state[0]}, or another time or inode); run again"
            )
        return descriptor

    def _evict(self) -> None:
        for path in list(self._open):
            if len(self._open) < self._most_open:
                return
            if not self._in_use.get(path):
                os.close(self._open.pop(path))


def _read_ahead(transfers: Transfers) -> "ReadAhead":
    # Not at the top: most runs read nothing over a network.
    from mergeengine.execution.ahead import ReadAhead

    return ReadAhead(transfers)


def _state(status: os.stat_result) -> FileState:
    return status.st_size, status.st_mtime_ns, status.st_ino


if hasattr(os, "preadv"):

    def _pread_into(descriptor: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(descriptor, [buffer], offset)

else:  # no positional reads (Windows): one reader at a time moves the file's position
    _position = Lock()

    def _pread_into(descriptor: int, buffer: memoryview, offset: int) -> int:
        with _position:
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, len(buffer))
        buffer[: len(data)] = data
        return len(data)
