"""What the pipeline asks of a device, and torch's accelerators as such a device.

Everything goes through ``torch.Stream``, ``torch.Event`` and ``torch.accelerator``, which know
CUDA, ROCm, XPU and others by one name.
"""

from collections.abc import Callable
from threading import Lock
from typing import Protocol, cast

import torch
from torch import Tensor

from mergeengine.errors import ResourceError
from mergeengine.units import format_binary_size


class Event(Protocol):
    """A place in a queue."""

    def synchronize(self) -> None:
        """Make the host wait until everything before that place is done."""


class Queue(Protocol):
    """Work that is done in order, some time after it was issued. Safe from many threads."""

    def run(self, action: Callable[[], None]) -> None:
        """Issue the torch operations of ``action``, which must not make the host wait.

        When the host may call ``action`` is open: it must not look at what changes later.
        """

    def record(self) -> Event:
        """The place after all that was issued so far."""

    def wait_event(self, event: Event) -> None:
        """Let what is issued from now on wait for another queue's event; the host goes on."""


class Device(Protocol):
    """Memory and queues of one accelerator."""

    @property
    def name(self) -> str: ...

    def host(self, size: int) -> Tensor:
        """``size`` bytes (flat, uint8) of host memory that queues copy from and to.

        Between an issued copy and its event the host must neither write (what is copied from) nor
        read (what is copied to). ResourceError where there is no such memory.
        """

    def memory(self, size: int) -> Tensor:
        """``size`` bytes (flat, uint8) on the device, for its queues; ResourceError where it is
        full."""

    def queue(self) -> Queue:
        """A new queue; work in different queues overlaps."""


class TorchDevice:
    """An accelerator that torch knows."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @property
    def name(self) -> str:
        return str(self._device)

    def host(self, size: int) -> Tensor:
        try:
            return torch.empty(max(size, 1), dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            raise ResourceError(
                f"no {format_binary_size(size)} of pinned host memory for {self.name}: {error}"
            ) from error

    def memory(self, size: int) -> Tensor:
        try:
            return torch.empty(max(size, 1), dtype=torch.uint8, device=self._device)
        except torch.OutOfMemoryError as error:
            raise ResourceError(
                f"{self.name}: no {format_binary_size(size)} are free on the device: lower "
                "--device-memory, or use another device"
            ) from error

    def queue(self) -> Queue:
        return _TorchQueue(torch.Stream(self._device))

    @property
    def free_bytes(self) -> int:
        """Memory of the device that nobody uses at the moment."""
        ask = getattr(torch.accelerator, "get_memory_info", None)  # torch 2.10 and later
        if ask is None:
            ask = torch.get_device_module(self._device).mem_get_info
        return int(ask(self._device)[0])


class _TorchQueue:
    def __init__(self, stream: torch.Stream) -> None:
        self._stream = stream
        self._lock = Lock()  # one thread at a time makes the stream its current one

    def run(self, action: Callable[[], None]) -> None:
        with self._lock, self._stream:
            action()

    def record(self) -> Event:
        return self._stream.record_event()

    def wait_event(self, event: Event) -> None:
        self._stream.wait_event(cast("torch.Event", event))
