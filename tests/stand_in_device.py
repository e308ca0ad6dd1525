"""A device that is as asynchronous as its interface allows, without hardware and without luck.

Nothing is done when it is issued. Each queue keeps its actions, waits and events, and how far it
gets before somebody waits for it is decided by a policy: queues that are ``early`` run as soon as
their waits allow, others only when the host waits for what depends on them (``late``), or a random
generator chooses among what could run next. All is deterministic with one worker, so a wait that is
missing is found by the policy that it matters to, every time.

Memory is poisoned when it is made. That of the device refuses what only its queues may do, whatever
would make the host wait (``item``, selections by masks, ``bincount``), and says that it is not the
CPU's, so that the code under test is what runs on real accelerators.
"""

import random
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock, local
from typing import Any

import numpy
import torch
from torch import Tensor

POISON = 0xA5
ROLES = ("incoming", "computing", "outgoing")  # in the order in which the pipeline makes queues

_VIEWS = {
    *("__get__", "__getitem__", "view", "as_strided", "permute", "reshape", "split", "expand"),
    *("numel", "stride", "storage_offset", "data_ptr", "dim", "is_contiguous", "size", "unsqueeze"),
    *("as_subclass", "__len__", "element_size", "untyped_storage"),
}
_WAITING = {
    *("item", "tolist", "numpy", "cpu", "to_list", "__bool__", "__int__", "__float__", "__index__"),
    *("__contains__", "nonzero", "masked_select", "bincount", "unique", "equal", "allclose"),
    *("aminmax", "is_nonzero", "index_put_", "repeat_interleave"),
}
_state = local()


@contextmanager
def executing() -> Iterator[None]:
    """As a queue: what a queue may do is allowed."""
    _state.executing = True
    try:
        yield
    finally:
        _state.executing = False


class Violation(AssertionError):
    """Something that real hardware would answer with a wrong result, a fault or a wait."""


class DeviceTensor(Tensor):
    """A tensor that claims to be on another device."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.__name__
        if name == "__get__" and func.__self__ is Tensor.device:
            return torch.device("cuda", 0)
        selects = name in ("__getitem__", "__setitem__") and _has_tensor(args[1])
        if name in _WAITING or selects:
            raise Violation(f"{name} makes the host wait")
        if name not in _VIEWS and not getattr(_state, "executing", False):
            raise Violation(f"the host itself called {name} on the memory of a device")
        if name == "copy_":
            _count_crossing(args[0], args[1])
        if name == "sqrt":  # rounded correctly, as accelerators do it
            with numpy.errstate(invalid="ignore"):
                root = numpy.sqrt(args[0].as_subclass(Tensor).numpy())
            return kwargs["out"].copy_(torch.from_numpy(numpy.asarray(root)))  # type: ignore[index]
        return super().__torch_function__(func, types, args, kwargs or {})


def _has_tensor(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) for part in parts)


def _count_crossing(target: Tensor, source: Tensor) -> None:
    device: StandInDevice | None = getattr(_state, "device", None)
    if device is not None and type(target) is not type(source):
        into = isinstance(target, DeviceTensor)
        device.crossed[into].append(source.numel() * source.itemsize)


class StandInEvent:
    """A place in a queue, ``done`` once the queue got there."""

    def __init__(self, queue: "StandInQueue") -> None:
        self.queue = queue
        self.done = False

    def synchronize(self) -> None:
        device = self.queue.device
        with device.lock:
            device.log.append("host waits")
            if device.ignoring != "host":
                device.finish(self)


class StandInQueue:
    """What was issued and is not done yet, in order."""

    def __init__(self, device: "StandInDevice", role: str) -> None:
        self.device = device
        self.role = role
        self.entries: deque[Callable[[], None] | tuple[str, StandInEvent]] = deque()

    def run(self, action: Callable[[], None]) -> None:
        with self.device.lock:
            self.device.log.append(self.role)
            self.entries.append(action)
            self.device.advance()

    def record(self) -> StandInEvent:
        with self.device.lock:
            event = StandInEvent(self)
            self.entries.append(("record", event))
            self.device.advance()
            return event

    def wait_event(self, event: Any) -> None:
        with self.device.lock:
            if self.device.ignoring != self.role:
                self.entries.append(("wait", event))
            self.device.advance()

    @property
    def blocker(self) -> StandInEvent | None:
        """The event that the first entry waits for, if it does."""
        if self.entries and isinstance(self.entries[0], tuple):
            kind, event = self.entries[0]
            return event if kind == "wait" and not event.done else None
        return None

    @property
    def can_run(self) -> bool:
        return bool(self.entries) and self.blocker is None

    def step(self) -> None:
        entry = self.entries.popleft()
        if isinstance(entry, tuple):
            kind, event = entry
            event.done = event.done or kind == "record"
            return
        with executing():
            _state.device = self.device
            entry()


class StandInDevice:
    """``early``: the roles that run as soon as they may. With a ``seed`` chance decides instead.

    ``ignoring`` takes a wait out: "computing" or "outgoing" (that queue's waits for others), or
    "host". ``peak_bytes`` and ``peak_pinned_bytes`` are the most that was allocated at a time,
    ``crossed`` the bytes of each copy into the device (True) and out of it (False), and ``log`` the
    roles of queues as actions were issued, and "host waits".
    """

    def __init__(
        self,
        early: frozenset[str] = frozenset(),
        *,
        seed: int | None = None,
        ignoring: str | None = None,
    ) -> None:
        self.name = "stand-in"
        self.lock = RLock()
        self.ignoring = ignoring
        self.queues: list[StandInQueue] = []
        self.log: list[str] = []
        self.crossed: dict[bool, list[int]] = {True: [], False: []}
        self.bytes = self.peak_bytes = self.pinned_bytes = self.peak_pinned_bytes = 0
        self._early = early
        self._random = None if seed is None else random.Random(seed)

    @property
    def pending(self) -> int:
        """Entries of queues that nobody has run."""
        return sum(len(queue.entries) for queue in self.queues)

    def host(self, size: int) -> Tensor:
        memory = torch.full((size,), POISON, dtype=torch.uint8)
        with self.lock:
            self.pinned_bytes += size
            self.peak_pinned_bytes = max(self.peak_pinned_bytes, self.pinned_bytes)
        weakref.finalize(memory, self._free_host, size)
        return memory

    def memory(self, size: int) -> Tensor:
        memory = torch.full((size,), POISON, dtype=torch.uint8).as_subclass(DeviceTensor)
        with self.lock:
            self.bytes += size
            self.peak_bytes = max(self.peak_bytes, self.bytes)
        weakref.finalize(memory, self._free, size)
        return memory

    def queue(self) -> StandInQueue:
        queue = StandInQueue(self, ROLES[len(self.queues) % 3])
        self.queues.append(queue)
        return queue

    def advance(self) -> None:
        """What happens by itself after something was issued."""
        if self._random is not None:
            for _ in range(self._random.randrange(4)):
                self._step_any()
            return
        while ready := [q for q in self.queues if q.role in self._early and q.can_run]:
            ready[0].step()

    def finish(self, event: StandInEvent) -> None:
        """Run what the event needs, and by chance more."""
        while not event.done:
            if self._random is not None:
                self._step_any()
                continue
            blocker = event.queue.blocker
            if blocker is not None:
                self.finish(blocker)
            else:
                event.queue.step()
                self.advance()

    def _step_any(self) -> None:
        assert self._random is not None
        ready = [queue for queue in self.queues if queue.can_run]
        if ready:
            self._random.choice(ready).step()

    def _free(self, size: int) -> None:
        self.bytes -= size

    def _free_host(self, size: int) -> None:
        self.pinned_bytes -= size
