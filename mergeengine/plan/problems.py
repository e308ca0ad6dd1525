"""Everything that is wrong with a plan, gathered and told at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mergeengine.errors import PlanError
from mergeengine.values.positions import Position

# What YAML counts as the end of a line.
_LINE_END = re.compile(r"\r\n|[\r\n\x85\u2028\u2029]")
_WIDTH = 100
_MOST = 50


@dataclass(slots=True)
class Problems:
    """The problems found so far in one plan whose text is `text`."""

    text: str
    found: set[tuple[Position, str]] = field(default_factory=set)

    def add(self, position: Position, message: str) -> None:
        self.found.add((position, message))

    def error(self) -> PlanError:
        """All problems as one error: those of the file by line, then those of ``--set``."""
        ordered = sorted(self.found, key=lambda problem: (problem[0].line == 0, problem))
        lines = _LINE_END.split(self.text)
        told = [f"{at}: {message}{_snippet(at, lines)}" for at, message in ordered[:_MOST]]
        if len(ordered) > _MOST:
            told.append(f"and {len(ordered) - _MOST} more")
        return PlanError("\n".join(told))

    def raise_any(self) -> None:
        if self.found:
            raise self.error()


def _snippet(place: Position, lines: list[str]) -> str:
    """The line of `place` with a caret below, cut to what fits a terminal."""
    if not 0 < place.line <= len(lines):
        return ""
    line, caret = lines[place.line - 1], place.column - 1
    line = "".join(character if character.isprintable() else " " for character in line)
    if not line.strip():
        return ""
    start = max(0, caret - _WIDTH // 2) if len(line) > _WIDTH else 0
    shown = line[start : start + _WIDTH].rstrip()
    return f"\n    {shown}\n    {' ' * (caret - start)}^"
