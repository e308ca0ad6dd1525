"""What a run may use of this machine. None of it changes a single byte of the output."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MOST_DEFAULT_WORKERS = 8
LEAST_DEFAULT_MEMORY = 1 << 30


@dataclass(frozen=True, slots=True)
class Settings:
    """``memory`` in bytes beyond the imports (default: a quarter of the machine's RAM);
    ``workers`` defaults to the processors and one more; ``device`` is auto, cpu, cuda, cuda:0 or
    several as cuda:0,cuda:1; ``device_memory`` in bytes of each accelerator (default: half of what
    is free there)."""

    device: str = "auto"
    memory: int | None = None
    workers: int | None = None
    device_memory: int | None = None
    offline: bool = False

    @property
    def memory_budget(self) -> int:
        if self.memory is not None:
            return self.memory
        return max(LEAST_DEFAULT_MEMORY, _available_memory() // 4)

    @property
    def worker_count(self) -> int:
        return self.workers or min(MOST_DEFAULT_WORKERS, _processors() + 1)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _available_memory() -> int:
    """The machine's RAM, or a container's limit where that is lower."""
    limits = []
    if hasattr(os, "sysconf"):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # no such file, or "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits, default=LEAST_DEFAULT_MEMORY)
