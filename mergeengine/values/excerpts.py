"""Quoting what a user wrote."""

from __future__ import annotations


def excerpt(text: str, width: int = 60) -> str:
    """`text` as a message may quote it: on one line, printable, and not long."""
    line = text if text.isprintable() else repr(text)[1:-1]
    return line if len(line) <= width else line[: width - 3] + "..."
