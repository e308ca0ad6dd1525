"""Reading parts of a file, where it lies."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mergeengine.errors import CheckpointError
from mergeengine.lazy.stored import StoredFile

Read = Callable[[int, int], bytes]
"""``read(offset, size)``: the bytes there, fewer only where the file ends."""


@contextmanager
def opened(path: Path) -> Iterator[Read]:
    """Reads of the file `path`; a failure of the system is a CheckpointError."""
    try:
        with path.open("rb", buffering=0) as stream:  # a buffer would read more than is asked

            def read(offset: int, size: int) -> bytes:
                stream.seek(offset)
                return stream.read(size)

            yield read
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


@contextmanager
def opened_file(file: StoredFile) -> Iterator[Read]:
    """Reads of a file of weights, on this machine or remote."""
    if file.is_remote:
        from mergeengine.checkpoints.remote import reads_of

        yield reads_of(file)
    else:
        with opened(file.local) as read:
            yield read
