"""A worker's memory as tensors."""

import torch
from torch import Tensor

from mergeengine.compiler.schedule import ALIGNMENT
from mergeengine.execution.memory import HostMemory, apart, bytes_at


class Arena:
    """A stack of tensors in a worker's memory (or in memory of another kind: ``over``).

    What ``take`` gives is valid until ``rewind`` to a mark before it.
    """

    def __init__(self, memory: HostMemory) -> None:
        self._bytes = torch.frombuffer(memory.mapping, dtype=torch.uint8)
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


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor in host memory, to read into or write from."""
    return bytes_at(tensor.data_ptr(), tensor.numel() * tensor.itemsize)
