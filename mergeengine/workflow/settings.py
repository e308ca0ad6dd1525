"""What a run may use of this machine. None of it changes a single byte of the output."""

import os
from dataclasses import dataclass

from mergeengine.units import parse_size
from mergeengine.workflow.cgroups import memory_limit

MOST_DEFAULT_WORKERS = 8
LEAST_DEFAULT_MEMORY = 1 << 30


@dataclass(frozen=True, slots=True)
class Settings:
    """``memory`` in bytes beyond the imports (default: a quarter of the RAM, or of a container's
    limit); ``workers`` defaults to the processors and one more; ``device`` is auto, cpu, cuda,
    cuda:0, or several as cuda:0,cuda:1; ``device_memory`` in bytes of each accelerator (default:
    half of what is free there)."""

    device: str = "auto"
    memory: int | None = None
    workers: int | None = None
    device_memory: int | None = None
    offline: bool = False

    @classmethod
    def of(
        cls,
        device: str,
        memory: int | str | None,
        workers: int | None,
        device_memory: int | str | None,
        offline: bool,
    ) -> "Settings":
        """From what a caller gives; sizes in bytes, or as ``"2GiB"``."""
        sizes = [parse_size(s) if isinstance(s, str) else s for s in (memory, device_memory)]
        return cls(device, sizes[0], workers, sizes[1], offline)

    @property
    def memory_budget(self) -> int:
        if self.memory is not None:
            return self.memory
        available = _available_memory()
        # Where there is little, half of it: the imports need their part.
        return max(available // 4, min(LEAST_DEFAULT_MEMORY, available // 2))

    @property
    def worker_count(self) -> int:
        return self.workers or min(MOST_DEFAULT_WORKERS, _processors() + 1)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _available_memory() -> int:
    """The machine's RAM, or the limit of this process's control group where that is lower."""
    limits = []
    if hasattr(os, "sysconf"):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = memory_limit()
    if limit is not None:
        limits.append(limit)
    return min(limits, default=2 * LEAST_DEFAULT_MEMORY)
