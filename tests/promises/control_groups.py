"""Processes under a real memory limit of the kernel's control groups, version 1 or 2."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from mergeengine.workflow.cgroups import Group, memory_groups

_numbers = count()


@dataclass(frozen=True, slots=True)
class Limited:
    """A group with a limit. What a process held before it came does not count."""

    folder: Path
    version: int

    def take(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def most(self) -> int:
        """The most it ever held, page cache and the kernel's own records included."""
        name = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}[self.version]
        return int((self.folder / name).read_text())


@contextmanager
def limited(size: int) -> Iterator[Limited]:
    """A new group for ``size`` bytes, page cache included; the test is skipped where none can be
    made. Processes in it must have ended before it is left."""
    reasons = []
    for group in memory_groups():
        for parent in _parents(group):
            folder = parent / f"mergeengine-test-{os.getpid()}-{next(_numbers)}"
            try:
                folder.mkdir()
            except OSError as error:
                reasons.append(f"{parent}: no group can be made ({error.strerror})")
                continue
            try:
                try:
                    _limit(folder, group.version, size)
                except OSError as error:
                    reasons.append(f"{parent}: no limit can be set ({error.strerror})")
                    continue
                yield Limited(folder, group.version)
                return
            finally:
                folder.rmdir()
    pytest.skip("; ".join(reasons) or "no memory controller is mounted (/proc/self/mountinfo)")


def _parents(group: Group) -> list[Path]:
    """Where a group may be made. In version 2 one that has processes, as our own has, hands on no
    controller (the top apart), so that a sibling has to do."""
    if group.version == 1 or group.folder == group.top:
        return [group.folder]
    return [group.folder.parent]


def _limit(folder: Path, version: int, size: int) -> None:
    limit, with_swap = {
        1: ("memory.limit_in_bytes", {"memory.memsw.limit_in_bytes": str(size)}),
        2: ("memory.max", {"memory.swap.max": "0"}),
    }[version]
    # A new group without the controller has no such file, and opening it must not make one.
    with (folder / limit).open("r+") as file:
        file.write(str(size))
    for name, text in with_swap.items():
        with suppress(OSError), (folder / name).open("r+") as file:  # absent without swap
            file.write(text)
