"""Where a tensor's bytes lie: what a checkpoint's header says, as plain values."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from mergeengine.lazy.dtypes import DType


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of weights. ``path`` is where it lies or, for a hub file, will lie once fetched.

    ``state`` is (mtime in ns, inode) at the time its header was read; None before it is fetched.
    """

    path: Path
    size: int
    state: tuple[int, int] | None = None


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
