"""The folder in which an output is made, its lock, and how it becomes the output.

``<parent>/.<name>.partial/`` holds ``lock`` (flock: it is free when its holder is dead),
``journal`` or a program's ``scratch/``, and ``files/``, which is renamed to the final name when
everything in it is complete and on disk. An output that is replaced stays in place until then.
"""

import ctypes
import errno
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from mergeengine.errors import OutputBusyError, OutputError

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def workspace_path(output: Path) -> Path:
    return output.parent / f".{output.name}.partial"


class Workspace:
    """Exclusive use of an output's workspace, as a context manager.

    Raises OutputBusyError while another run has it, OutputError where it cannot be made.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = workspace_path(output)
        self.files = self.path / "files"
        self.journal = self.path / "journal"
        self.scratch = self.path / "scratch"  # of a program, from one attempt to the next
        self._set_aside = self.path / "replaced"
        self._lock = -1

    def __enter__(self) -> "Workspace":
        try:
            self._acquire()
            self._recover()
        except OSError as error:
            self._release()
            raise output_error(self.path, error) from error
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            kept = (self.journal, self.files, *self._in_scratch())
            if not any(os.path.lexists(path) for path in kept):
                with suppress(OSError):  # nothing was begun, or everything is done
                    self.discard()
        finally:
            self._release()

    def _in_scratch(self) -> list[Path]:
        return list(self.scratch.iterdir()) if self.scratch.is_dir() else []

    @property
    def lock_descriptor(self) -> int:
        """Whoever inherits it holds the workspace too, as long as it is open."""
        return self._lock

    def remove_output(self) -> None:
        """Remove the output itself: at once under its name, so that no half of it is left there."""
        try:
            self.start_over()
            self.output.rename(self.files)
            sync_folder(self.output.parent)
            self.discard()
        except OSError as error:
            raise output_error(self.output, error) from error

    def start_over(self) -> None:
        """Throw away what an earlier run left."""
        self.journal.unlink(missing_ok=True)
        _remove(self.files)

    def install(self) -> None:
        """Give ``files`` the final name, at once; an output that was there is then removed.

        Raises OutputError where the system refuses; everything is kept for the next run.
        """
        try:
            sync_folder(self.files)
            if _is_empty_folder(self.output):
                self.output.rmdir()
            if not os.path.lexists(self.output):
                self.files.rename(self.output)
            elif not _exchange(self.files, self.output):
                self.output.rename(self._set_aside)
                self.files.rename(self.output)
            # From here on `files` may be what was replaced: nothing may be written there again.
            self.journal.unlink(missing_ok=True)
            sync_folder(self.output.parent)
            self.discard()
        except OSError as error:
            raise output_error(self.output, error) from error

    def discard(self) -> None:
        """Remove the workspace and everything in it."""
        self._recover()
        _remove(self.files)
        shutil.rmtree(self.path, ignore_errors=True)  # another run may be opening a lock there

    def _recover(self) -> None:
        """Put an output back that was set aside by a run that died before its rename."""
        if os.path.lexists(self._set_aside):
            if os.path.lexists(self.output):
                _remove(self._set_aside)
            else:
                self._set_aside.rename(self.output)

    def _acquire(self) -> None:
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            path = self.path / "lock"
            try:
                self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:
                continue  # its last holder has just removed the folder
            if not _try_lock(self._lock):
                self._release()
                raise OutputBusyError(
                    f"{self.output}: another run is writing this output. Wait for it, or write "
                    "somewhere else with --output"
                )
            try:
                if os.path.samestat(os.fstat(self._lock), path.stat()):
                    return
            except FileNotFoundError:
                pass
            self._release()  # the lock of a folder that has been removed

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def output_error(path: Path, error: OSError) -> OutputError:
    """What an operating system's error means for an output, and the way out."""
    name = error.filename or path
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            hint = "the disk is full. Make space and run again: finished work is kept"
        case errno.EACCES | errno.EPERM:
            hint = "permission denied. Write somewhere else with --output"
        case errno.EROFS:
            hint = "the file system is read-only. Write somewhere else with --output"
        case errno.ENOTDIR | errno.EEXIST:
            hint = "a file is in the way of a folder. Write somewhere else with --output"
        case _:
            hint = error.strerror or str(error)
    return OutputError(f"{name}: cannot be written: {hint}")


def allocated_bytes(path: Path) -> int:
    """What a file takes of the disk: less than its size where it has holes."""
    status = path.lstat()
    return getattr(status, "st_blocks", 0) * 512 or status.st_size


def sync_folder(path: Path) -> None:
    """Make a folder's entries survive a power failure, where the system can."""
    if sys.platform != "win32":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a file, a link (not what it points to), or a folder; nothing is fine too."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step, where the system and the file system can (Linux)."""
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
