"""Where in a plan something is written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a plan; line and column count from 1.

    What stands in no file, such as ``--set scaling=0.5``, has line 0: `file` is its text then.
    """

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file
