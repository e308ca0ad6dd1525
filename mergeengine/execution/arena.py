"""A worker's memory: one allocation, made once, handed out block by block."""

import ctypes
import mmap
import sys

import torch
from torch import Tensor

from mergeengine.compiler.schedule import ALIGNMENT


class Arena:
    """A stack of tensors in one anonymous mapping (or in memory that is there: ``over``).

    What ``take`` gives is valid until ``rewind`` to a mark before it. Nothing else is allocated
    while blocks are computed, so the projected peak is simply the sum of the arenas.
    """

    def __init__(self, size: int) -> None:
        self._bytes = torch.frombuffer(_anonymous(max(size, 1)), dtype=torch.uint8)
        self._spacing = ALIGNMENT
        self._used = 0

    @classmethod
    def over(cls, memory: Tensor, spacing: int) -> "Arena":
        """An arena in ``memory`` (flat, uint8, on any device); parts begin at multiples of
        ``spacing`` bytes."""
        arena = cls.__new__(cls)
        arena._bytes, arena._spacing, arena._used = memory, spacing, 0
        return arena

    def take(self, elements: int, dtype: torch.dtype, beside: int | None = None) -> Tensor:
        """A flat tensor of ``elements``, uninitialised.

        What is read from byte ``beside`` of a file lies ``apart`` from it, in an arena of pages.
        """
        size = elements * dtype.itemsize
        moved = beside is not None and self._spacing == ALIGNMENT
        room = ALIGNMENT if moved else 0
        start = self._used + (apart(beside) if beside is not None and moved else 0)
        end = self._used + -(-size // self._spacing) * self._spacing + room
        if end > self._bytes.numel():
            raise AssertionError(f"arena of {self._bytes.numel()} bytes is too small for {end}")
        part = self._bytes[start : start + size].view(dtype)
        self._used = end
        return part

    def mark(self) -> int:
        """The present fill, for ``rewind``."""
        return self._used

    def rewind(self, mark: int = 0) -> None:
        """Give back everything taken since ``mark``."""
        self._used = mark


def apart(offset: int) -> int:
    """Where in a page to put what is copied from or to a file's byte ``offset``: half a page off.

    Copying to an address that is up to 63 bytes (modulo the page) beyond the source's takes seven
    times as long on some processors: a load seems to depend on the store just before it.
    """
    return (offset + ALIGNMENT // 2) % ALIGNMENT // 64 * 64


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor in host memory, to read into or write from."""
    size = tensor.numel() * tensor.itemsize
    if size == 0:
        return memoryview(b"")
    return memoryview((ctypes.c_ubyte * size).from_address(tensor.data_ptr())).cast("B")


def _anonymous(size: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    # Shared (the default) would hide from RSS accounting of anonymous memory and from limits.
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
