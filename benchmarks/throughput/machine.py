"""The machine in general words: what makes its figures comparable, and no names."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from mergeengine.units import format_binary_size


def describe_machine(folder: Path) -> dict[str, Any]:
    """Cores, memory, and the disk that ``folder`` lies on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "disk": _disk(folder),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _disk(folder: Path) -> str:
    """``virtual disk, ext4, 8 MiB read-ahead``."""
    device = folder.stat().st_dev
    words = []
    place = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if place.exists():
        place = place.resolve()
        if not (place / "queue").exists():  # a partition
            place = place.parent
        words.append(_kind(place.name))
        read_ahead = int((place / "queue" / "read_ahead_kb").read_text()) << 10
        words.append(f"{format_binary_size(read_ahead)} read-ahead")
    words.insert(1, _file_system(folder))
    return ", ".join(words)


def _kind(name: str) -> str:
    kinds = {"nvme": "NVMe disk", "vd": "virtual disk", "sd": "SCSI or SATA disk", "md": "RAID"}
    return next((kind for start, kind in kinds.items() if name.startswith(start)), "other disk")


def _file_system(folder: Path) -> str:
    """The type of the deepest mount that holds the folder."""
    found = ("", "unknown file system")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if folder.resolve().is_relative_to(mount) and len(mount) >= len(found[0]):
            found = (mount, kind)
    return found[1]
