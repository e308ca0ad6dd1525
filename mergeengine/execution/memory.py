"""A worker's memory: one anonymous mapping, made once, handed out block by block. Without torch."""

import ctypes
import mmap
import sys

from mergeengine.compiler.schedule import ALIGNMENT, align


class HostMemory:
    """A stack of addresses in one mapping of ``size`` bytes, its parts at the starts of pages.

    What ``take`` gives is valid until ``rewind``. Nothing else is allocated while blocks are
    computed, so the projected peak is simply the sum of the mappings.
    """

    def __init__(self, size: int) -> None:
        self.mapping = _anonymous(max(size, 1))
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self.mapping))
        self._used = 0

    def take(self, size: int, beside: int | None = None) -> int:
        """The address of ``size`` bytes. What is read from byte ``beside`` of a file lies ``apart``
        from it."""
        start = self._used + (0 if beside is None else apart(beside))
        self._used += align(size) + (0 if beside is None else ALIGNMENT)
        if self._used > len(self.mapping):
            raise AssertionError(f"{len(self.mapping)} bytes are too few for {self._used}")
        return self._address + start

    def rewind(self) -> None:
        """Give everything back."""
        self._used = 0


def apart(offset: int) -> int:
    """Where in a page to put what is copied from or to a file's byte ``offset``: half a page off.

    Copying to an address that is 8 to 24 bytes (modulo the page) beyond the source's took seven
    times as long on an AMD EPYC: a load seems to depend on the store just before it.
    """
    return (offset + ALIGNMENT // 2) % ALIGNMENT // 64 * 64


def bytes_at(address: int, size: int) -> memoryview:
    """``size`` bytes of memory, to read into or write from."""
    if size == 0:
        return memoryview(b"")
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")


def _anonymous(size: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    # Shared (the default) would hide from RSS accounting of anonymous memory and from limits.
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
