"""The rounds: every contestant in turn, in each state of the cache, again and again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from benchmarks.throughput.contestants import FLOOR, Absent, Contestant, make
from benchmarks.throughput.floor import Settings, early_writing_works
from benchmarks.throughput.inputs import ROLES, Inputs
from benchmarks.throughput.measure import Cache, Failed, Figures, bring_into, run
from benchmarks.throughput.values import values_digest

_BLOCKS = (1 << 18, 1 << 20, 1 << 23)
_HEATS = (1000, 8, 8)  # the most ways that are tried once more; at first all
_FINALISTS = 3

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Run:
    """One contestant's run.

    ``inside`` is its time without imports, with the output synced; ``beyond_imports`` its peak
    anonymous memory without them. Not every contestant tells.
    """

    contestant: str
    cache: Cache
    round: int
    inside: float | None
    beyond_imports: int | None
    figures: Figures
    way: Settings | None = None  # of a floor


@dataclass(slots=True)
class Results:
    """Everything that was measured."""

    runs: list[Run] = field(default_factory=list)
    floors: dict[Cache, Settings] = field(default_factory=dict)
    tried: dict[Cache, dict[Settings, list[float]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)  # contestant to digest


def play(
    names: Sequence[str], caches: Sequence[Cache], rounds: int, inputs: Inputs, tell: Tell
) -> Results:
    """Find the best floors for each state of the cache, then measure ``names`` round by round.

    Several floors go through all rounds, and the one that is best there counts: a single try says
    little, as the same plain I/O takes up to three times as long from one time to the next.
    """
    results = Results()
    finalists: dict[Cache, list[Settings]] = {}
    for cache in caches:
        tell(f"{cache}: looking for the floor")
        tried = results.tried[cache] = _try_floors(inputs, cache, tell)
        finalists[cache] = _best(tried)[:_FINALISTS]
    for number in range(rounds):
        for cache in caches:
            entries = [
                (name, way)
                for name in names
                for way in (finalists[cache] if name == FLOOR else [None])
            ]
            # Back and forth, so that no contestant always follows the same other.
            for name, way in entries if number % 2 == 0 else reversed(entries):
                if name not in results.skipped:
                    _take_part(name, way, cache, number, inputs, results, tell)
    for cache in caches:
        results.floors[cache] = min(
            finalists[cache],
            key=lambda way: median(
                run.inside or run.figures.wall
                for run in results.runs
                if run.cache == cache and run.way == way
            ),
        )
        tell(f"{cache}: the floor is {results.floors[cache]}")
    return results


def _take_part(
    name: str,
    way: Settings | None,
    cache: Cache,
    number: int,
    inputs: Inputs,
    results: Results,
    tell: Tell,
) -> None:
    def leave_out(reason: Exception) -> None:
        results.skipped[name] = str(reason)
        tell(f"{name} is left out: {reason}")

    try:
        contestant = make(name, inputs, way)
    except Absent as absent:
        leave_out(absent)
        return
    try:
        measured = replace(measure(contestant, inputs, cache, number), way=way)
    except Failed as failed:
        if not contestant.foreign:
            raise
        leave_out(failed)
        return
    results.runs.append(measured)
    results.titles[name] = contestant.title
    inside = "" if measured.inside is None else f", {measured.inside:.2f} s inside"
    tell(f"round {number + 1}, {cache}, {name}: {measured.figures.wall:.2f} s{inside}")
    if name != FLOOR and name not in results.values:
        results.values[name] = values_digest(contestant.output, len(inputs.layout.shapes))
    contestant.clear()


def measure(contestant: Contestant, inputs: Inputs, cache: Cache, number: int) -> Run:
    """One run. Its output is left for who wants to look at it."""
    files = [file for role in ROLES for file in inputs.files(role)]

    def once(command: Sequence[str], output: Path | None) -> Figures:
        contestant.clear()
        bring_into(cache, files)
        return run(command, contestant.log, output)

    imports = None
    if contestant.imports is not None:
        imports = once(contestant.imports, None).wall
    figures = once(contestant.command, contestant.output)
    inside, beyond_imports = contestant.own_figures()
    if inside is not None:
        inside += figures.synced
    elif imports is not None and figures.wall > imports:  # else the models are too small to tell
        inside = figures.wall - imports
    return Run(contestant.name, cache, number, inside, beyond_imports, figures)


def _try_floors(inputs: Inputs, cache: Cache, tell: Tell) -> dict[Settings, list[float]]:
    """Seconds of each way: all are tried in turn, then the better ones in turn again."""
    tried: dict[Settings, list[float]] = {settings: [] for settings in _ways(inputs)}
    for keep in _HEATS:
        for settings in _best(tried)[:keep]:
            contestant = make(FLOOR, inputs, settings)
            inside = measure(contestant, inputs, cache, 0).inside
            contestant.clear()
            assert inside is not None
            tried[settings].append(inside)
            tell(f"{cache}: {inside:.2f} s with {settings}")
    return tried


def _ways(inputs: Inputs) -> list[Settings]:
    processors = len(os.sched_getaffinity(0))
    counts = {min(8, n) for n in (1, processors, processors + 1, 2 * processors)}
    return [
        Settings(block, threads, early)
        for block in _BLOCKS
        for threads in sorted(counts)
        for early in ((True, False) if early_writing_works() else (False,))
        if threads * block <= inputs.tensor_bytes
    ]


def _best(tried: dict[Settings, list[float]]) -> list[Settings]:
    """Best first; what was tried more often comes before what was dropped earlier."""
    return sorted(tried, key=lambda way: (-len(tried[way]), median(tried[way] or [0.0])))
