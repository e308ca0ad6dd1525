"""Processes under a real memory limit of the kernel's control groups, version 1 or 2."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from mergeengine.workflow.cgroups import Group, memory_groups

_MOST = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}
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
        return int((self.folder / _MOST[self.version]).read_text())

    def remove(self) -> None:
        """End what is still in it, which only a failed test leaves, and remove it."""
        while left := (self.folder / "cgroup.procs").read_text().split():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.01)
        self.folder.rmdir()


@contextmanager
def limited(size: int) -> Iterator[Limited]:
    """A new group for ``size`` bytes, page cache included; removed with all that is in it.

    The test is skipped where none can be made."""
    reasons = []
    for group in memory_groups():
        parent = _parent(group)
        made = Limited(parent / f"mergeengine-test-{os.getpid()}-{next(_numbers)}", group.version)
        try:
            made.folder.mkdir()
        except OSError as error:
            reasons.append(f"{parent}: no group can be made ({error.strerror})")
            continue
        try:
            try:
                _limit(made, size)
            except OSError as error:
                reasons.append(f"{error.filename}: {error.strerror}")
                continue
            yield made
            return
        finally:
            made.remove()
    pytest.skip("; ".join(reasons) or "no memory controller is mounted (/proc/self/mountinfo)")


def _parent(group: Group) -> Path:
    """Where a group may be made. In version 2 one that has processes, as our own has, hands on no
    controller (the top apart), so that a sibling has to do."""
    beside = group.version == 2 and group.folder != group.top
    return group.folder.parent if beside else group.folder


def _limit(group: Limited, size: int) -> None:
    """Raises OSError with the file that is missing or may not be written."""
    limit, with_swap = {
        1: ("memory.limit_in_bytes", {"memory.memsw.limit_in_bytes": str(size)}),
        2: ("memory.max", {"memory.swap.max": "0"}),
    }[group.version]
    # A new group without the controller has no such file, and opening it must not make one.
    with (group.folder / limit).open("r+") as file:
        file.write(str(size))
    for name, text in with_swap.items():
        with suppress(OSError), (group.folder / name).open("r+") as file:  # absent without swap
            file.write(text)
    # What a process that comes in needs: in version 2 the right to leave the parent's part, too.
    group.most()
    for folder in {group.folder, group.folder.parent} if group.version == 2 else {group.folder}:
        with (folder / "cgroup.procs").open("r+"):
            pass
