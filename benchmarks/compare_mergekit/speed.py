"""``python -m benchmarks.compare_mergekit speed``: seconds and memory of merges, by both."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.compare_mergekit.report import publish
from benchmarks.compare_mergekit.running import Absent, mergekit
from benchmarks.throughput.inputs import ITEMSIZE, ROOT, Inputs, prepare
from benchmarks.throughput.machine import describe_machine
from benchmarks.throughput.measure import Failed, Figures, bring_into, run
from mergeengine.units import format_binary_size, parse_size

OURS, THEIRS = "mergeengine", "mergekit"
_MIB = 1 << 20
_BASE, _TUNED = "base", ("target", "ft")  # of the three models that are made

_EACH: dict[str, dict[str, float]] = {
    "linear": {"weight": 0.5},
    "ties": {"weight": 0.5, "density": 0.5},
    "dare_ties": {"weight": 0.5, "density": 0.5},
    "della": {"weight": 0.5, "density": 0.5, "epsilon": 0.1},
    "model_stock": {},
    "slerp": {},
    "sce": {},
    "karcher": {},
}
_SHARED: dict[str, dict[str, float]] = {"slerp": {"t": 0.3}, "sce": {"select_topk": 0.5}}
_WITHOUT_BASE = ("linear", "karcher")


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. ``inside`` and ``beyond`` are its seconds and its peak of anonymous bytes without
    what starting takes; see `_started`."""

    method: str
    who: str
    round: int
    inside: float
    beyond: int
    figures: Figures


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare_mergekit speed")
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(_EACH)}")
    parser.add_argument("--size", default="1.5GB", help="of one model; default %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench")
    parser.add_argument("--ours", action="store_true", help="mergeengine alone")
    parser.add_argument("--publish", action="store_true", help="put the table into the README")
    asked = parser.parse_args(arguments)
    unknown = [name for name in asked.methods if name not in _EACH]
    if unknown:
        parser.error(f"no method {', '.join(unknown)}; there are {', '.join(_EACH)}")
    program = None
    if not asked.ours:
        try:
            program = mergekit()
        except Absent as absent:
            print(f"mergekit is left out: {absent}", file=sys.stderr)
    inputs = prepare(asked.folder, parse_size(asked.size))
    runs = list(play(asked.methods or list(_EACH), asked.rounds, inputs, program))
    written = {
        "date": date.today().isoformat(),
        "machine": describe_machine(inputs.folder),
        "layout": str(inputs.layout),
        "bytes": inputs.tensor_bytes,
        "runs": [asdict(each) for each in runs],
    }
    path = asked.folder / "mergekit-speed.json"
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    text = report(written)
    print(text)
    if asked.publish:
        publish(ROOT / "benchmarks" / "README.md", "mergekit-speed", " speed", text)
    return 0


def play(
    methods: Sequence[str], rounds: int, inputs: Inputs, program: str | None
) -> Iterator[Measured]:
    """Every method by each, in turn, all inputs in the page cache."""
    files = [file for role in (_BASE, *_TUNED) for file in inputs.files(role)]
    folder = inputs.folder / "runs" / "mergekit-speed"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(rounds):
        started = _started(program, folder) if program else None
        for method in methods:
            config = folder / f"{method}.yml"
            config.write_text(yaml.safe_dump(_config(method, inputs), sort_keys=False))
            for who in (OURS, THEIRS):
                if who == THEIRS and program is None:
                    continue
                output, report_file = folder / "out", folder / "report.json"
                shutil.rmtree(output, ignore_errors=True)
                bring_into("warm", files)
                command = _command(who, program, config, output, report_file, inputs)
                try:
                    figures = run(command, folder / f"{method}-{who}.log", output)
                except Failed as failed:
                    tell(f"{method}, {who}: {failed}")
                    continue
                measured = _beyond(method, who, number, figures, report_file, started)
                tell(
                    f"round {number + 1}, {method}, {who}: {figures.wall:.1f} s, "
                    f"{measured.inside:.1f} s inside, {format_binary_size(measured.beyond)}"
                )
                yield measured
        shutil.rmtree(folder / "out", ignore_errors=True)


def _started(program: str, folder: Path) -> Figures:
    """What mergekit takes to start: ``--help`` imports what a merge does."""
    return run([program, "--help"], folder / "help.log")


def _beyond(
    method: str, who: str, number: int, figures: Figures, report_file: Path, started: Figures | None
) -> Measured:
    if who == OURS:
        report = json.loads(report_file.read_text())
        seconds, held = report["seconds"]["total"], report["memory"]["measured_bytes"]
        return Measured(method, who, number, seconds + figures.synced, held, figures)
    assert started is not None
    inside = figures.wall - started.wall
    beyond = figures.peak_anonymous - started.peak_anonymous
    return Measured(method, who, number, inside, beyond, figures)


def _config(method: str, inputs: Inputs) -> dict[str, Any]:
    based = method not in _WITHOUT_BASE
    own = {"parameters": dict(_EACH[method])} if _EACH[method] else {}
    models = [{"model": str(inputs.folder / role), **own} for role in _TUNED]
    if method == "slerp":
        models = [{"model": str(inputs.folder / role)} for role in (_BASE, _TUNED[1])]
    config: dict[str, Any] = {"merge_method": method, "models": models, "dtype": "bfloat16"}
    if based:
        config["base_model"] = str(inputs.folder / _BASE)
    if method in _SHARED:
        config["parameters"] = dict(_SHARED[method])
    return config


def _command(
    who: str,
    program: str | None,
    config: Path,
    output: Path,
    report_file: Path,
    inputs: Inputs,
) -> list[str]:
    if who == OURS:
        module = [sys.executable, "-m", "mergeengine", "run", str(config)]
        return [*module, "--output", str(output), "--report", str(report_file)]
    assert program is not None
    shard = str(inputs.layout.shard_bytes // ITEMSIZE)
    return [program, str(config), str(output), "--no-copy-tokenizer", "--out-shard-size", shard]


def report(document: dict[str, Any]) -> str:
    """The table: medians over the rounds, and how many times ours is faster and smaller."""
    machine = document["machine"]
    rows = [
        f"{document['date']}; {machine['cores']} cores ({machine['processor']}), "
        f"{format_binary_size(machine['memory_bytes'])} of memory, {machine['disk']}. Layout: "
        f"{document['layout']}, bfloat16; all inputs in the page cache; medians.",
        "",
        "| method | mergeengine, s | without imports, s | beyond imports, MiB | mergekit, s "
        "| without imports, s | beyond imports, MiB | times faster: whole, without imports "
        "| times less memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method in _EACH:
        figures = {
            who: [r for r in document["runs"] if (r["method"], r["who"]) == (method, who)]
            for who in (OURS, THEIRS)
        }
        if not any(figures.values()):
            continue
        cells, middles = [], {}
        for who, runs in figures.items():
            if not runs:
                cells += ["–"] * 3
                continue
            wall = median(r["figures"]["wall"] for r in runs)
            inside = median(r["inside"] for r in runs)
            beyond = median(r["beyond"] for r in runs)
            middles[who] = wall, inside, beyond
            cells += [f"{wall:.1f}", f"{inside:.1f}", f"{beyond / _MIB:.0f}"]
        if len(middles) == 2:
            wall, inside, beyond = (
                theirs / ours for theirs, ours in zip(middles[THEIRS], middles[OURS], strict=True)
            )
            cells += [f"{wall:.1f}, {inside:.1f}", f"{beyond:.0f}"]
        else:
            cells += ["–", "–"]
        rows.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(rows)


_BEGAN = time.monotonic()


def tell(text: str) -> None:
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {text}", file=sys.stderr, flush=True)
