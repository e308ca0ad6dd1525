"""Everything that is wrong with a plan, gathered and told at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mergeengine.errors import PlanError
from mergeengine.values.positions import Position
from mergeengine.values.references import public

# What YAML counts as the end of a line.
_LINE_END = re.compile(r"\r\n|[\r\n\x85\u2028\u2029]")
_WIDTH = 100
_MOST = 50


@dataclass(slots=True)
class Problems:
    """The problems found so far in one plan: in its own file, and in those that it includes."""

    found: set[tuple[Position, str]] = field(default_factory=set)
    _texts: dict[str, str] = field(default_factory=dict)
    _asked: dict[str, Position] = field(default_factory=dict)

    def open(self, file: str, text: str, asked: Position | None = None) -> None:
        """From now on positions may lie in `file`; `asked` is the entry that includes it."""
        self._texts.setdefault(file, text)
        if asked is not None:
            self._asked.setdefault(file, asked)

    def add(self, position: Position, message: str) -> None:
        self.found.add((position, message))

    def error(self) -> PlanError:
        """All problems as one error: those of each file by line, then those of ``--set``."""
        files = list(self._texts)

        def order(problem: tuple[Position, str]) -> tuple[int, tuple[Position, str]]:
            file = problem[0].file
            known = problem[0].line != 0 and file in self._texts
            return files.index(file) if known else len(files), problem

        ordered = sorted(self.found, key=order)
        told = [
            f"{at}: {message}{self._snippet(at)}{self._includers(at)}"
            for at, message in ordered[:_MOST]
        ]
        if len(ordered) > _MOST:
            told.append(f"and {len(ordered) - _MOST} more")
        return PlanError("\n".join(told))

    def _snippet(self, place: Position) -> str:
        """The line of `place` with a caret below, cut to what fits a terminal."""
        lines = _LINE_END.split(self._texts.get(place.file, ""))
        if not 0 < place.line <= len(lines):
            return ""
        line, caret = public(lines[place.line - 1]), place.column - 1
        line = "".join(character if character.isprintable() else " " for character in line)
        if not line.strip():
            return ""
        start = max(0, caret - _WIDTH // 2) if len(line) > _WIDTH else 0
        shown = line[start : start + _WIDTH].rstrip()
        return f"\n    {shown}\n    {' ' * (caret - start)}^"

    def _includers(self, place: Position) -> str:
        """Which lines brought the file of `place` in, up to the plan."""
        chain: list[str] = []
        asked = self._asked.get(place.file)
        while asked is not None and str(asked) not in chain:
            chain.append(str(asked))
            asked = self._asked.get(asked.file)
        return f"\n    included by {', by '.join(chain)}" if chain and place.line else ""
