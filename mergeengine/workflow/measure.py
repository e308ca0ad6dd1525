"""How much memory a job takes, as its projection counts it."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

_STATUS = Path("/proc/self/status")
_INTERVAL = 0.02


def anonymous_bytes() -> int:
    """Anonymous and shared memory of this process: not its mapped files, not the page cache."""
    try:
        text = _STATUS.read_text()
    except OSError:
        return _peak_resident()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return sum(int(fields[key].split()[0]) * 1024 for key in ("RssAnon", "RssShmem"))


def _peak_resident() -> int:
    """Where the system does not tell (macOS): all resident memory, at its peak."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Meter:
    """Seconds per phase and peak memory of a job, imports apart.

    Memory is sampled from a thread of its own; ``peak_bytes`` is beyond what was held before.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_bytes = 0
        self._base = 0
        self._began = self._last = 0.0
        self._importing = False
        self._stop = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Meter":
        self._began = self._last = time.perf_counter()
        self._base = anonymous_bytes()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()
        self.seconds["total"] = round(time.perf_counter() - self._began, 4)

    @contextmanager
    def imports(self) -> Iterator[None]:
        """What happens inside counts neither as time nor as memory of the job."""
        began, held = time.perf_counter(), anonymous_bytes()
        self._importing = True
        try:
            yield
        finally:
            self._base += anonymous_bytes() - held
            self._importing = False
        spent = time.perf_counter() - began
        self._began += spent
        self._last += spent

    def lap(self, phase: str) -> None:
        """The phase ends here."""
        before, self._last = self._last, time.perf_counter()
        self.seconds[phase] = round(self._last - before, 4)

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL):
            self._sample()

    def _sample(self) -> None:
        if not self._importing:
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes() - self._base)
