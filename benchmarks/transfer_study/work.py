"""The jobs of the study and their order: three chains for each seed, then measuring."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.tiny.jobs import run_jobs
from benchmarks.transfer_study.recipe import MEASURES, Recipe
from benchmarks.transfer_study.tables import Measures

# Where the programs that are run find the packages of this project.
PATHS = [Path(__file__).resolve().parents[2]]
SHIPPED = Path(__file__).parent / "chains"
MEASURING = "measuring"
NEEDS: dict[str, tuple[str, ...]] = {
    "lineage": (),
    "transfer": ("lineage",),
    "algorithm-1": ("lineage",),
    MEASURING: ("transfer", "algorithm-1"),
}
_MEASURE = ("-m", "benchmarks.transfer_study.measure")


class JobFailed(Exception):
    """A job of a seed ended with an error, which it has told."""


def run_all(
    folder: Path, seeds: Sequence[int], recipe: Recipe, workers: int
) -> dict[int, Measures]:
    """Do whatever is missing for these seeds, in ``workers`` processes of one thread each.

    Raises JobFailed; the same call goes on where it stopped.
    """
    for seed in seeds:
        _prepare(folder / f"seed{seed}", seed, recipe)
    waits_for = {
        (seed, job): [(seed, needed) for needed in NEEDS[job]] for seed in seeds for job in NEEDS
    }
    do = partial(_do, folder, time.monotonic())
    with ThreadPoolExecutor(workers) as pool:
        run_jobs(waits_for, do, pool, workers)
    return {
        seed: json.loads((folder / f"seed{seed}" / MEASURES).read_text()) for seed in sorted(seeds)
    }


def _prepare(folder: Path, seed: int, recipe: Recipe) -> None:
    """The chains, and what their steps read, in a folder of the seed's own."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in SHIPPED.glob("*.yaml"):
        shutil.copyfile(path, folder / path.name)
    recipe.write(folder, seed)


def _do(folder: Path, start: float, seed_and_job: tuple[int, str]) -> None:
    seed, job = seed_and_job
    chain = ("-m", "mergeengine", "run", f"{job}.yaml", "--allow-commands")
    command = _MEASURE if job == MEASURING else chain
    paths = os.pathsep.join(map(str, PATHS))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=folder / f"seed{seed}",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            passed = time.monotonic() - start
            print(f"[{passed:5.0f} s] seed {seed}, {job}: {line.rstrip()}", file=sys.stderr)
    if process.returncode:
        raise JobFailed(f"seed {seed}: {job} ended with exit code {process.returncode}")
