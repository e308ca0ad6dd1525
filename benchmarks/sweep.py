"""``python -m benchmarks.sweep``: what does another output of the same inputs cost?

Four merges ``target + s * (ft - base)`` are made by one ``mergeengine run --sweep scaling=...``, by
four runs one after the other, and, as the floor, the same bytes are read once and written four
times with plain system calls. Everything is synced; times are those of whole processes.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.throughput.floor import Settings, write_job
from benchmarks.throughput.inputs import ROLES, ROOT, Inputs, prepare
from benchmarks.throughput.measure import Cache, bring_into, can_drop_caches, run
from mergeengine.units import parse_size

VALUES = ("0.3", "0.5", "0.8", "1.0")
WAYS = (Settings(1 << 18, 3, True), Settings(1 << 20, 3, True), Settings(1 << 23, 2, True))
PLAN = """\
version: 1
target: ../../target
source_base: ../../base
source_ft: ../../ft
output: {path: ./out}
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("--size", default="1.5GB", help="of one model; default %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench")
    arguments = parser.parse_args()
    inputs = prepare(arguments.folder, parse_size(arguments.size))
    caches: list[Cache] = ["warm", "cold"] if can_drop_caches() else ["warm"]
    print(f"{inputs.layout}; {len(VALUES)} outputs; medians (least-most), whole processes")
    print("| | floor, s | one sweep, s | / floor | four runs, s | / sweep |")
    print("|---|---|---|---|---|---|")
    for cache in caches:
        rounds = [_round(inputs, cache) for _ in range(arguments.rounds)]
        floors, sweeps, singles = zip(*rounds, strict=True)
        ratios = [sweep / floor for floor, sweep, _ in rounds]
        gains = [single / sweep for _, sweep, single in rounds]
        row = " | ".join(map(_spread, (floors, sweeps, ratios, singles, gains)))
        print(f"| {cache} | {row} |", flush=True)
    return 0


def _round(inputs: Inputs, cache: Cache) -> tuple[float, float, float]:
    """Seconds of the best floor, of the sweep, and of the runs in turn."""
    folder = inputs.folder / "runs" / "sweep"
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "plan.yaml"
    plan.write_text(PLAN)
    program = (sys.executable, "-m", "mergeengine", "run", str(plan))
    job = folder / "job.json"
    floors = []
    for way in WAYS:
        copies = [folder / f"copy-{value}" for value in VALUES]
        write_job(job, way, [inputs.files(role) for role in ROLES], *copies)
        module = (sys.executable, "-m", "benchmarks.throughput.floor", str(job))
        floors.append(_seconds(inputs, cache, [(*module, str(folder / "report.json"))]))
    sweep = _seconds(inputs, cache, [(*program, "--sweep", f"scaling={','.join(VALUES)}")])
    single = _seconds(
        inputs,
        cache,
        [
            (*program, "--set", f"scaling={value}", "--output", str(folder / f"single-{value}"))
            for value in VALUES
        ],
    )
    return min(floors), sweep, single


def _seconds(inputs: Inputs, cache: Cache, commands: Sequence[Sequence[str]]) -> float:
    """All commands, one after the other; what they wrote is removed."""
    folder = inputs.folder / "runs" / "sweep"
    taken = 0.0
    for command in commands:
        bring_into(cache, [file for role in ROLES for file in inputs.files(role)])
        taken += run(command, folder / "log.txt").wall
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    return taken


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main())
