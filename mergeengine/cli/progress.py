"""Progress of a job: bars on a terminal, one quiet line per phase elsewhere."""

import shutil
import sys
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from mergeengine.cli.console import say
from mergeengine.units import format_size

if TYPE_CHECKING:
    from tqdm import tqdm


class Progress:
    """Shows phases of a job, as a context manager; ``tell`` is what the workflow calls."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._phase: str | None = None
        self._bar: tqdm[NoReturn] | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def tell(self, phase: str, done: int, total: int) -> None:
        """``done`` of ``total`` bytes of a phase; a total of 1 has no bytes to show."""
        if phase != self._phase:
            self._close()
            self._phase = phase
            self._begin(phase, done, total)
        elif self._bar is not None:
            self._bar.update(done - self._bar.n)

    def _begin(self, phase: str, done: int, total: int) -> None:
        if not self._terminal or total <= 1:
            size = f" {format_size(total)}" if total > 1 else ""
            kept = f" ({format_size(done)} were done before)" if done and phase == "merging" else ""
            say(f"{phase}{size}{kept}")
            return
        from tqdm import tqdm

        tqdm.monitor_interval = 0
        # A terminal may not know its width (0): a bar of that width would be empty.
        width = shutil.get_terminal_size().columns
        bar: tqdm[NoReturn] = tqdm(
            desc=phase,
            total=total,
            initial=done if phase == "merging" else 0,  # bytes of an earlier run have no rate
            unit="B",
            unit_scale=True,
            dynamic_ncols=width > 0,
            ncols=None if width else 80,
            file=sys.stderr,
        )
        bar.update(done - bar.n)
        self._bar = bar

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._phase = None
