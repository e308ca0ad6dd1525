"""Tables over seeds, as Markdown and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Measures = dict[str, Any]
Picker = Callable[[Measures], float]


@dataclass(frozen=True)
class Spread:
    """One figure, of each seed."""

    values: tuple[float, ...]
    digits: int = 2

    def __str__(self) -> str:
        mean = f"{statistics.fmean(self.values):.{self.digits}f}".replace("-", "−")
        if len(self.values) == 1:
            return mean
        return f"{mean} ± {statistics.stdev(self.values):.{self.digits}f}"


@dataclass(frozen=True)
class Finding:
    """What the papers say, and in which seeds it is seen here."""

    claim: str
    seen: tuple[bool, ...]

    def __str__(self) -> str:
        count, seeds = sum(self.seen), len(self.seen)
        if seeds == 1:
            return f"{self.claim}: {'seen' if count else '**not seen**'}."
        part = f"seen in {count} of {seeds} seeds"
        return f"{self.claim}: {part if count > seeds / 2 else f'**{part}**'}."


Cell = str | Spread


@dataclass(frozen=True)
class Table:
    """One comparison. The first column of a row is its name; ``papers`` are their figures."""

    name: str
    title: str
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    papers: Sequence[str]
    findings: Sequence[Finding] = ()
    plots: Sequence[str] = field(default=())

    def to_markdown(self) -> str:
        """A section of its own."""
        lines = [f"## {self.title}", "", self.about, ""]
        lines += [_row(self.columns), _row(["---"] * len(self.columns))]
        lines += [_row([str(cell) for cell in row]) for row in self.rows]
        lines += ["", *(f"* Papers: {text}" for text in self.papers)]
        lines += [f"* {finding}" for finding in self.findings]
        for plot in self.plots:
            lines += ["", f"![{self.title}]({plot})"]
        return "\n".join(lines) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Every figure of every seed."""
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": [
                [list(cell.values) if isinstance(cell, Spread) else cell for cell in row]
                for row in self.rows
            ],
            "papers": list(self.papers),
            "findings": [{"claim": f.claim, "seen": list(f.seen)} for f in self.findings],
        }


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def spread(seeds: Sequence[Measures], pick: Picker, digits: int = 2) -> Spread:
    """One figure of each seed's measures."""
    return Spread(tuple(pick(measures) for measures in seeds), digits)


def finding(seeds: Sequence[Measures], claim: str, holds: Callable[[Measures], bool]) -> Finding:
    """In which seeds a claim holds."""
    return Finding(claim, tuple(holds(measures) for measures in seeds))
