"""One measured run: a process from start to end, its output on the disk, and what it took."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Literal

from benchmarks.throughput.inputs import ROOT

Cache = Literal["warm", "cold"]

_INTERVAL = 0.005  # s between two looks at a process's memory
_DROP = Path("/proc/sys/vm/drop_caches")
_LAST_WORDS = 2000  # characters of a failed process's output that are shown


class Failed(Exception):
    """A process ended with an error; the text holds its last words."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds and bytes. ``synced`` is the part of ``wall`` after the process's end in which the
    rest of its output went to the disk; ``cpu_of_others`` is what the rest of the machine took
    meanwhile, the kernel's own threads as well."""

    wall: float
    synced: float
    cpu: float
    peak_anonymous: int
    peak_resident: int
    cpu_of_others: float


def run(command: Sequence[str], log: Path, output: Path | None = None) -> Figures:
    """Run a process to its end and sync ``output``; what it prints goes to ``log``."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    busy = _busy_seconds()
    with log.open("wb") as file:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment
        )
        with _Watch(process.pid) as watch:
            _, status, usage = os.wait4(process.pid, 0)
        ended = time.perf_counter()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        words = log.read_text(errors="replace")[-_LAST_WORDS:]
        raise Failed(f"exit code {process.returncode} of {' '.join(command)}\n{words}")
    if output is not None:
        _sync(output)
    done = time.perf_counter()
    cpu = usage.ru_utime + usage.ru_stime
    return Figures(
        wall=done - began,
        synced=done - ended,
        cpu=cpu,
        peak_anonymous=watch.anonymous,
        peak_resident=watch.resident,
        cpu_of_others=max(0.0, _busy_seconds() - busy - cpu),
    )


def can_drop_caches() -> bool:
    return os.geteuid() == 0 and os.access(_DROP, os.W_OK)


def bring_into(cache: Cache, files: Sequence[Path]) -> None:
    """Bring the machine into the state: nothing left to be written; ``files`` cached, or nothing.

    A cold cache is cold for everything, a process's own libraries as well.
    """
    os.sync()
    if cache == "cold":
        _DROP.write_text("3\n")
        return
    buffer = bytearray(1 << 20)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


class _Watch:
    """Peak memory of a process while it lives, from /proc."""

    def __init__(self, pid: int) -> None:
        self.anonymous = self.resident = 0
        self._status = Path(f"/proc/{pid}/status")
        self._stop = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL):
            try:
                lines = self._status.read_text().splitlines()
            except OSError:
                return
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
            if "RssAnon" not in fields:  # it has just ended
                return
            held = {key: int(fields[key].split()[0]) * 1024 for key in _FIELDS}
            self.anonymous = max(self.anonymous, held["RssAnon"] + held["RssShmem"])
            self.resident = max(self.resident, held["VmHWM"])


_FIELDS = ("RssAnon", "RssShmem", "VmHWM")


def _busy_seconds() -> float:
    """CPU seconds that all processors have spent, or had taken by the host, since the start."""
    numbers = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    user, nice, system, _idle, _waiting, *rest = map(int, numbers)
    return (user + nice + system + sum(rest[:3])) / os.sysconf("SC_CLK_TCK")


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
