"""The text of a plan's file, or why it is none."""

from __future__ import annotations

import os
from pathlib import Path

from mergeengine.errors import PlanError
from mergeengine.units import format_binary_size
from mergeengine.values.nearest import did_you_mean
from mergeengine.values.positions import Position

MAX_BYTES = 1 << 20


class UnreadableError(Exception):
    """Why a file is no text of a plan, and, where it is known, the line and column."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.line, self.column = line, column


def read_text(path: Path) -> str:
    """The text without a byte order mark; UnreadableError says why there is none."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UnreadableError(f"there is no such file{_similar(path)}") from None
    except IsADirectoryError:
        raise UnreadableError("this is a folder; give the plan's file") from None
    except (OSError, ValueError) as failure:
        reason = getattr(failure, "strerror", None) or failure
        raise UnreadableError(f"cannot be read: {reason}") from None
    if b"\0" in content[:8192]:
        raise UnreadableError("this is a binary file; a plan is a YAML text")
    if len(content) > MAX_BYTES:
        limit = format_binary_size(MAX_BYTES)
        raise UnreadableError(f"the file is larger than {limit}, which no plan is")
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as failure:
        before = content[: failure.start]
        line, column = before.count(b"\n") + 1, failure.start - before.rfind(b"\n")
        message = "this is not UTF-8; save the plan as UTF-8 text"
        raise UnreadableError(message, line, column) from None


def text_of(path: str | os.PathLike[str]) -> str:
    """The same for the file that a command names; PlanError, at its place, where there is none."""
    try:
        return read_text(Path(path))
    except UnreadableError as failure:
        at = Position(os.fspath(path), failure.line, failure.column)
        raise PlanError(f"{at}: {failure}") from None


def _similar(path: Path) -> str:
    try:
        siblings = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    except OSError:
        return ""
    meant = did_you_mean(path.name, siblings)
    return meant.replace("`", f"`{path.parent}/", 1) if meant and path.parent.name else meant
