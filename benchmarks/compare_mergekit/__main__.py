"""``python -m benchmarks.compare_mergekit [METHOD...]``: the same merges by mergekit, compared."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.compare_mergekit import speed
from benchmarks.compare_mergekit.cases import (
    BASE,
    DTYPES,
    FORMS,
    LAYOUTS,
    RECIPES,
    TUNED,
    Case,
    grid,
)
from benchmarks.compare_mergekit.report import broken, publish, table
from benchmarks.compare_mergekit.running import Absent, mergekit, run_ours, run_theirs
from benchmarks.compare_mergekit.verdicts import EXACT_WANTED, Verdict
from benchmarks.throughput.inputs import ROOT

README = ROOT / "benchmarks" / "README.md"
DESCRIPTION = (
    "Run mergekit configurations on tiny models by an installed mergekit and by mergeengine with "
    "numerics.compatibility=mergekit, and compare the outputs. `speed` instead of methods: seconds "
    "and memory on a larger layout."
)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["speed"]:
        return speed.main(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare_mergekit", description=DESCRIPTION
    )
    parser.add_argument(
        "methods", nargs="*", metavar="METHOD", help=f"of {', '.join(RECIPES)}; default all"
    )
    for name, choices in (("dtypes", DTYPES), ("forms", FORMS), ("layouts", LAYOUTS)):
        parser.add_argument(f"--{name}", nargs="+", choices=choices, default=list(choices))
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench" / "compare_mergekit")
    parser.add_argument(
        "--theirs-again",
        action="store_true",
        help="take mergekit's outputs of the last time, where only mergeengine has changed",
    )
    parser.add_argument("--publish", action="store_true", help="put the table into the README")
    asked = parser.parse_args(arguments)
    unknown = [name for name in asked.methods if name not in RECIPES]
    if unknown:
        parser.error(f"no method {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    try:
        mergekit("mergekit-multi")
    except Absent as absent:
        print(f"skipped: {absent}", file=sys.stderr)
        return 0
    cases = grid(asked.methods or RECIPES, asked.dtypes, asked.forms, asked.layouts)
    verdicts = compare(cases, asked.folder, keep=asked.theirs_again)
    written = json.dumps([asdict(each) for each in verdicts], indent=1)
    (asked.folder / "verdicts.json").write_text(written + "\n", encoding="utf-8")
    text = table(verdicts)
    print(text)
    wrong = broken(verdicts)
    for line in wrong:
        print(f"not as promised: {line}", file=sys.stderr)
    if asked.publish:
        publish(README, "mergekit", "", text)
    return 1 if wrong else 0


def compare(cases: list[Case], folder: Path, *, keep: bool = False) -> list[Verdict]:
    """Make the models, run both, and judge each case."""
    from benchmarks.compare_mergekit import models  # torch: not where there is nothing to compare
    from benchmarks.compare_mergekit.judging import judge, load

    made = folder / "models"
    for dtype in DTYPES:
        models.make(made / dtype, dtype)
    failed = {} if keep else run_theirs(cases, made, folder / "theirs", tell)
    ours = run_ours(cases, made, folder / "ours", tell)
    wanted = [case for case in cases if case.method in EXACT_WANTED]
    exact = run_ours(wanted, made, folder / "exact", tell, exact=True) if wanted else {}
    inputs = {
        dtype: {name: load(made / dtype / name) for name in (BASE, *TUNED)} for dtype in DTYPES
    }
    verdicts = []
    for case in cases:
        problems = {"mergekit": failed, "mergeengine": ours, "mergeengine, exactly": exact}
        words = [f"{who}: {of[case.name]}" for who, of in problems.items() if case.name in of]
        if not (folder / "theirs" / case.name).is_dir() and not words:
            words = ["mergekit has no output of it"]
        if words:
            verdict = Verdict(case.name, case.method, case.dtype, problem="; ".join(words))
        else:
            true = folder / "exact" / case.name if case in wanted else None
            outputs = (folder / who / case.name for who in ("ours", "theirs"))
            verdict = judge(case, *outputs, true, inputs[case.dtype])
        verdicts.append(verdict)
    return verdicts


_BEGAN = time.monotonic()


def tell(text: str) -> None:
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
