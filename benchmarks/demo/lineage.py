"""The jobs of the demo and their order: trainings, the merge by the engine, the scores."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from benchmarks.demo.recipe import PARENTS, Recipe
from benchmarks.demo.scores import RECYCLED, Scores, scores_of
from benchmarks.tiny.jobs import run_jobs

ROOT = Path(__file__).resolve().parents[2]
PLAN = ROOT / "plans" / "demo.yaml"
SCORES = "scores"

# Job -> the jobs it waits for, those that others wait for longest first.
JOBS: dict[str, tuple[str, ...]] = {
    **{name: (parent,) if parent else () for name, parent in PARENTS.items()},
    RECYCLED: ("v1", "v1_ft", "v2"),
    SCORES: (*PARENTS, RECYCLED),
}


def run_all(folder: Path, seeds: list[int], workers: int) -> dict[int, Scores]:
    """Do whatever is missing for these seeds, in parallel processes of one thread each."""
    waits_for = {
        (seed, job): [(seed, needed) for needed in JOBS[job]] for job in JOBS for seed in seeds
    }
    with ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),
        initializer=_start_worker,
        initargs=(time.time(),),
    ) as pool:
        results = run_jobs(waits_for, partial(_do, folder), pool, workers)
    found = {seed: result for (seed, _), result in results.items() if result is not None}
    return dict(sorted(found.items()))


_start = time.time()


def _start_worker(start: float) -> None:
    global _start
    _start = start


def _tell(seed: int, text: str) -> None:
    print(f"[{time.time() - _start:5.0f} s] seed {seed}: {text}", file=sys.stderr, flush=True)


def _do(root: Path, seed_and_job: tuple[int, str]) -> Scores | None:
    seed, job = seed_and_job
    folder = root / f"seed{seed}"
    if job == RECYCLED:
        _merge(folder, seed)
    elif job == SCORES:
        return scores_of(folder)
    else:
        _train(folder, seed, job)
    return None


def _train(folder: Path, seed: int, name: str) -> None:
    recipe = Recipe()
    marker = folder / f"{name}.json"
    digest = recipe.digest()
    if (folder / name).is_dir() and marker.exists():
        stored = json.loads(marker.read_text())
    else:
        stored = {}
    if stored.get("recipe") == digest:
        return
    from benchmarks.demo.training import train
    from benchmarks.tiny.training import quiet_torch

    quiet_torch()

    marker.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.time()

    def report(step: int, steps: int, loss: float) -> None:
        if step % 200 == 0 or step == steps:
            _tell(seed, f"{name:5} step {step:4}/{steps}  loss {loss:.3f}")

    loss = train(recipe, name, seed, folder, report)
    document = {"recipe": digest, "loss": loss, "seconds": round(time.time() - started, 1)}
    marker.write_text(json.dumps(document))


def _merge(folder: Path, seed: int) -> None:
    """``mergeengine run plans/demo.yaml``, with other models where the plan means others."""
    command = [sys.executable, "-m", "mergeengine", "run", str(PLAN)]
    command += ["--output", str(folder / RECYCLED)]
    if folder != ROOT / ".demo" / "seed0":
        for key, name in (("target", "v2"), ("source_base", "v1"), ("source_ft", "v1_ft")):
            command += ["--set", f"{key}={folder / name}"]
    started = time.time()
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if finished.returncode:
        sys.stderr.write(finished.stderr)
        raise RuntimeError(f"{' '.join(command)} failed with code {finished.returncode}")
    _tell(seed, f"v2 + (v1_ft - v1) by mergeengine, {time.time() - started:.1f} s")


def forget(folder: Path, seeds: list[int]) -> None:
    """Remove what earlier demos left for these seeds."""
    for seed in seeds:
        shutil.rmtree(folder / f"seed{seed}", ignore_errors=True)
