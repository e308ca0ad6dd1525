"""Slots of memory on the host and on a device, and the three waits that keep them apart.

A block takes a slot, is read into it and issued, and the worker goes on; what came of it is
delivered when the slot is taken again, or when there is nothing else to do. Each device has three
queues, which all its workers share: one copies in, one computes, one copies out, as the hardware
has one engine for each. What waits for what:

1. computing waits for the copy in, and
2. the copy out waits for the computing: by events between queues, the host goes on;
3. the host waits for the copy out before it looks at a slot's result or uses the slot again. By 1
   and 2 all that was issued for the slot is done then, so one wait suffices for all four of its
   memories.

Nothing else in the loop makes the host wait. What all blocks of a device share, registers and
torch's temporaries, is touched by its computing queue alone, which is in order.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from mergeengine.compiler.ring import SPACING, Ring
from mergeengine.execution.arena import Arena
from mergeengine.execution.queues import Device, Event


class Lane:
    """One device: its queues, and the memory that all blocks computed there share."""

    def __init__(self, device: Device, ring: Ring) -> None:
        self.device = device
        self.incoming, self.computing, self.outgoing = (device.queue() for _ in range(3))
        self.workspace = device.memory(ring.workspace_bytes)

    def settle(self) -> None:
        """Wait until nothing is under way, whatever went wrong."""
        for queue in (self.incoming, self.computing, self.outgoing):
            queue.record().synchronize()


class Slot:
    """Room for one block under way, on the host and on the device."""

    def __init__(self, device: Device, ring: Ring) -> None:
        self.input = device.host(ring.input_bytes)
        self.input_there = device.memory(ring.input_bytes)
        self.result = device.host(ring.result_bytes)
        self.result_there = device.memory(ring.result_bytes)
        self.arena = Arena.over(self.input, SPACING)
        self.done: Event | None = None
        self.deliver: Callable[[], None] | None = None

    def there(self, view: Tensor) -> Tensor:
        """A view of the slot's input (a part of its arena), as it will be on the device."""
        start = view.storage_offset() * view.itemsize - self.input.storage_offset()
        there = self.input_there[start : start + _extent(view)].view(view.dtype)
        return there.as_strided(view.shape, view.stride())


class Slots:
    """One worker's ring of slots. Not to be shared by threads."""

    def __init__(self, lane: Lane, ring: Ring) -> None:
        self._lane = lane
        self._slots = [Slot(lane.device, ring) for _ in range(ring.slots)]  # least recent first

    @property
    def busy(self) -> bool:
        """Whether blocks are under way."""
        return any(slot.done is not None for slot in self._slots)

    def take(self) -> Slot:
        """The slot to use next, after what is under way in it was delivered."""
        slot = self._slots.pop(0)
        self._slots.append(slot)
        self._finish(slot)
        return slot

    def deliver_one(self) -> None:
        """Wait for the oldest block under way, and deliver it."""
        self._finish(next(slot for slot in self._slots if slot.done is not None))

    def deliver_all(self) -> None:
        while self.busy:
            self.deliver_one()

    def _finish(self, slot: Slot) -> None:
        if slot.done is not None and slot.deliver is not None:
            slot.done.synchronize()
            deliver, slot.done, slot.deliver = slot.deliver, None, None
            deliver()

    def issue(
        self,
        slot: Slot,
        action: Callable[[], None],
        size: int,
        deliver: Callable[[], None],
    ) -> None:
        """Copy the slot's arena in, run ``action``, copy ``size`` bytes of the result out."""
        lane, used = self._lane, slot.arena.mark()
        if used:
            lane.incoming.run(partial(copy, slot.input_there[:used], slot.input[:used]))
            lane.computing.wait_event(lane.incoming.record())
        lane.computing.run(action)
        done = lane.computing.record()
        if size:
            lane.outgoing.wait_event(done)
            lane.outgoing.run(partial(copy, slot.result[:size], slot.result_there[:size]))
            done = lane.outgoing.record()
        slot.done, slot.deliver = done, deliver


def _extent(view: Tensor) -> int:
    """Bytes from a view's first to its last element."""
    if not view.numel():
        return 0
    steps = zip(view.shape, view.stride(), strict=True)
    return (1 + sum((n - 1) * stride for n, stride in steps)) * view.itemsize


def copy(target: Tensor, source: Tensor) -> None:
    """Copy between the host and a device without waiting, for a queue to run."""
    target.copy_(source, non_blocking=True)
