"""``python -m benchmarks.transfer_study``: train lineages, merge by chains, compare."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.transfer_study.recipe import Recipe
from benchmarks.transfer_study.report import publish
from benchmarks.transfer_study.work import JobFailed, run_all

DESCRIPTION = (
    "Train lineages of a tiny model, carry fine-tunes along them by chains of the engine, and "
    "compare with the papers. Stopped anywhere, it goes on where it was."
)


def main() -> int:
    """Run the study; 1 where a job failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.transfer_study", description=DESCRIPTION
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="how many, from 0 on")
    parser.add_argument("--folder", type=Path, default=Path(".study"), help="where all is kept")
    parser.add_argument(
        "--results", type=Path, help="for tables and plots; default: FOLDER/results"
    )
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), help="parallel processes"
    )
    given = parser.parse_args()
    folder, recipe = given.folder.resolve(), Recipe()
    results = given.results or folder / "results"
    try:
        measures = run_all(folder, range(max(1, given.seeds)), recipe, max(1, given.workers))
    except JobFailed as failed:
        print(f"{failed}; repeat the command to go on", file=sys.stderr)
        return 1
    if not publish(results, measures, recipe):
        print("no plots: pip install 'mergeengine[plot]'", file=sys.stderr)
    print((results / "README.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
