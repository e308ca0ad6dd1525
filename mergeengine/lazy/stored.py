"""Where a tensor's bytes lie: what a checkpoint's header says, as plain values."""

from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from mergeengine.lazy.dtypes import DType


@dataclass(frozen=True, slots=True)
class RemotePath:
    """A file that is read by ranges where it lies.

    ``url`` may hold a signature, so it is never shown; ``str`` gives what may be. ``version`` is
    what the store tells versions apart by when the header is read (an ETag, a time), empty where
    it says nothing.
    """

    url: str = field(repr=False)
    shown: str
    version: str = ""

    @property
    def name(self) -> str:
        """The last component, without a query."""
        return self.url.partition("?")[0].rpartition("/")[2]

    def __str__(self) -> str:
        return self.shown


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of weights. ``path`` is where it lies or, for a hub file, will lie once fetched.

    ``state`` is (mtime in ns, inode) at the time its header was read; None before it is fetched,
    and of a remote file.
    """

    path: Path | RemotePath
    size: int
    state: tuple[int, int] | None = None

    @property
    def local(self) -> Path:
        """The path of a file that is on this machine, or will be."""
        assert isinstance(self.path, Path), "a remote file"
        return self.path

    @property
    def is_remote(self) -> bool:
        """Whether its bytes are read over a network, and never copied to this machine whole."""
        return isinstance(self.path, RemotePath)


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor in a file: contiguous, row-major, little-endian.

    ``offset`` is absolute, in bytes from the beginning of the file; ``source`` is the reference
    of the checkpoint as the user wrote it, for formulas and messages.
    """

    source: str
    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: StoredFile
    offset: int

    def __hash__(self) -> int:
        # Versions of a model share all but the source. The rest is compared: hashing a path takes
        # longer.
        return hash((self.source, self.name, self.offset))

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize
