"""What was measured, as JSON and as Markdown tables."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.throughput.contestants import FLOOR
from benchmarks.throughput.inputs import ROLES, ROOT, Inputs
from benchmarks.throughput.machine import describe_machine
from benchmarks.throughput.measure import Cache
from benchmarks.throughput.rounds import Results, Run
from mergeengine.units import format_size

BEGIN = "<!-- throughput: begin (written by `python -m benchmarks.throughput --publish`) -->"
END = "<!-- throughput: end -->"
OURS = "mergeengine"

Summary = dict[str, Any]
Spread = dict[str, float]


def document(results: Results, inputs: Inputs, size: str, rounds: int) -> dict[str, Any]:
    """Everything, for JSON. Times in seconds, memory in bytes."""
    caches = list(results.floors)
    return {
        "format": 1,
        "date": date.today().isoformat(),
        "machine": describe_machine(inputs.folder),
        "software": {
            "commit": _commit(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("mergeengine", "torch", "safetensors")},
        },
        "inputs": {
            "size": size,
            "layout": str(inputs.layout),
            "models": len(ROLES),
            "tensors": len(inputs.layout.shapes),
            "files": len(inputs.layout.shards),
            "bytes_read": inputs.moved_bytes - inputs.tensor_bytes,
            "bytes_written": inputs.tensor_bytes,
        },
        "rounds": rounds,
        "floor": {
            cache: {
                "chosen": asdict(results.floors[cache]),
                "tried": [
                    {**asdict(settings), "seconds": seconds}
                    for settings, seconds in results.tried[cache].items()
                ],
            }
            for cache in caches
        },
        "titles": results.titles,
        "skipped": results.skipped,
        "values": results.values,
        "summary": {cache: _summary(results, cache, inputs.moved_bytes) for cache in caches},
        "runs": [_flat(run) for run in results.runs],
    }


def _commit() -> str | None:
    """The state of the working tree, where git knows it."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _flat(run: Run) -> dict[str, Any]:
    record = asdict(run)
    return {**record.pop("figures"), **record}


def _summary(results: Results, cache: Cache, moved: int) -> dict[str, Summary]:
    by_name: dict[str, list[Run]] = {}
    for run in results.runs:
        if run.cache == cache and run.way in (None, results.floors[cache]):
            by_name.setdefault(run.contestant, []).append(run)
    return {name: _of_contestant(own, by_name, moved) for name, own in by_name.items()}


def _of_contestant(own: list[Run], by_name: dict[str, list[Run]], moved: int) -> Summary:
    def wall(run: Run) -> float | None:
        return run.figures.wall

    def inside(run: Run) -> float | None:
        return run.inside

    def ratio(figure: Callable[[Run], float | None], other: str) -> Spread | None:
        """Each run over the other's of the same round."""
        of_round = {run.round: figure(run) for run in by_name.get(other, [])}
        return _spread(
            mine / theirs
            for run in own
            if (mine := figure(run)) is not None and (theirs := of_round.get(run.round))
        )

    return {
        "wall": _spread(run.figures.wall for run in own),
        "wall_over_floor": ratio(wall, FLOOR),
        "wall_over_mergeengine": ratio(wall, OURS),
        "inside": _spread(run.inside for run in own if run.inside is not None),
        "inside_over_floor": ratio(inside, FLOOR),
        "inside_over_mergeengine": ratio(inside, OURS),
        "gigabytes_per_second": _spread(
            moved / (run.inside or run.figures.wall) / 1e9 for run in own
        ),
        "cpu": _spread(run.figures.cpu for run in own),
        "peak_anonymous": _spread(run.figures.peak_anonymous for run in own),
        "peak_resident": _spread(run.figures.peak_resident for run in own),
        "beyond_imports": _spread(r.beyond_imports for r in own if r.beyond_imports is not None),
        "cpu_of_others": _spread(run.figures.cpu_of_others for run in own),
    }


def _spread(values: Iterable[float]) -> Spread | None:
    values = list(values)
    if not values:
        return None
    return {"median": median(values), "least": min(values), "most": max(values)}


def tables(document: dict[str, Any]) -> str:
    """The tables, and what one must know to read them."""
    machine, inputs, software = document["machine"], document["inputs"], document["software"]
    parts = [
        f"{document['date']}; {machine['cores']} cores ({machine['processor']}), "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB of memory, {machine['disk']}; "
        f"{machine['system']}; Python {software['python']}, torch {software['torch']}, mergeengine "
        f"{software['mergeengine']}" + (f" ({software['commit']})." if software["commit"] else "."),
        f"Layout: {inputs['layout']}; {inputs['tensors']} tensors in {inputs['files']} files per "
        f"model. {format_size(inputs['bytes_read'])} are read and "
        f"{format_size(inputs['bytes_written'])} written. Rounds: {document['rounds']}; medians "
        "(least–most); a ratio is to the floor of the same round.",
    ]
    for cache, summary in document["summary"].items():
        parts.append(_table(cache, summary, document))
    faster = _faster(document)
    if faster:
        parts.append(faster)
    parts.append(_same_values(document["values"]))
    parts.append(_others(document["runs"]))
    parts.extend(
        f"Not measured: {name} ({reason.splitlines()[0]})."
        for name, reason in document["skipped"].items()
    )
    return "\n\n".join(part for part in parts if part)


def _table(cache: str, summary: dict[str, Summary], document: dict[str, Any]) -> str:
    chosen = document["floor"][cache]["chosen"]
    flush = "write-back begun block by block" if chosen["early"] else "written back by fsync"
    rows = [
        f"**{cache.capitalize()} cache** (floor: blocks of {chosen['block'] >> 10} KiB, "
        f"{chosen['threads']} threads, {flush})",
        "",
        "| | whole process, s | ÷ floor | without imports, s | ÷ floor | GB/s | CPU, s "
        "| peak anonymous, MiB | peak RSS, MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, figures in summary.items():
        cells = [
            document["titles"][name],
            _seconds(figures["wall"]),
            _ratio(figures["wall_over_floor"]),
            _seconds(figures["inside"]),
            _ratio(figures["inside_over_floor"]),
            f"{figures['gigabytes_per_second']['median']:.2f}",
            f"{figures['cpu']['median']:.2f}",
            f"{figures['peak_anonymous']['median'] / 2**20:.0f}",
            f"{figures['peak_resident']['median'] / 2**20:.0f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    own = summary.get(OURS)
    if own and own["beyond_imports"]:
        beyond = own["beyond_imports"]["most"] / 2**20
        rows += [
            "",
            f"mergeengine's own peak of anonymous memory beyond its imports: {beyond:.0f} MiB.",
        ]
    return "\n".join(rows)


def _faster(document: dict[str, Any]) -> str:
    """How many times faster mergeengine is than each other one."""
    rows = []
    for cache, summary in document["summary"].items():
        if OURS not in summary:
            continue
        for name, figures in summary.items():
            if name not in (OURS, FLOOR):
                whole, inside = figures["wall_over_mergeengine"], figures["inside_over_mergeengine"]
                title = document["titles"][name]
                rows.append(f"| {title}, {cache} | {_ratio(whole)} | {_ratio(inside)} |")
    if not rows:
        return ""
    head = ["| mergeengine is faster than | whole process | without imports |", "|---|---|---|"]
    return "\n".join([*head, *rows])


def _same_values(values: dict[str, str]) -> str:
    if OURS not in values or len(values) == 1:
        return ""
    same = [name for name in values if name != OURS and values[name] == values[OURS]]
    other = [name for name in values if values[name] != values[OURS]]
    return " ".join(
        f"{text} as mergeengine: {', '.join(names)}."
        for text, names in (("The same bits", same), ("Other bits", other))
        if names
    )


def _others(runs: list[dict[str, Any]]) -> str:
    shares = [run["cpu_of_others"] / run["wall"] for run in runs]
    return (
        f"While one ran, everything else on the machine, the kernel's write-back included, kept "
        f"{median(shares):.2f} processors busy (median; at most {max(shares):.2f})."
    )


def _seconds(spread: Spread | None) -> str:
    return _shown(spread, 2)


def _ratio(spread: Spread | None) -> str:
    return _shown(spread, 2)


def _shown(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return "–"
    if spread["least"] == spread["most"]:
        return f"{spread['median']:.{digits}f}"
    return "{median:.{d}f} ({least:.{d}f}–{most:.{d}f})".format(d=digits, **spread)


def publish(readme: Path, text: str) -> None:
    """Put the tables between the markers of a Markdown file."""
    page = readme.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme}: expected the lines\n{BEGIN}\n{END}")
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
