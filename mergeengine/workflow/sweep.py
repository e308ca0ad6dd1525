"""A sweep: one output for each value of a parameter, all made of one reading of the inputs."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mergeengine.compiler.schedule import Schedule, schedule
from mergeengine.errors import PlanError
from mergeengine.plan.plan import Plan
from mergeengine.plan.sweep import variants
from mergeengine.workflow.measure import Meter
from mergeengine.workflow.models import load_libraries, references_of
from mergeengine.workflow.prepare import Prepared, output_of, prepare
from mergeengine.workflow.produce import Job, Progress, produce
from mergeengine.workflow.reading import load_plan
from mergeengine.workflow.report import made, spent
from mergeengine.workflow.run import RunResult, job_of, result_of
from mergeengine.workflow.settings import Settings


def sweep(
    plan: str | os.PathLike[str],
    sweeps: Sequence[str],
    *,
    overrides: Sequence[str] = (),
    output: str | os.PathLike[str] | None = None,
    device: str = "auto",
    memory: int | str | None = None,
    workers: int | None = None,
    device_memory: int | str | None = None,
    force: bool = False,
    locked: bool = False,
    offline: bool = False,
    progress: Progress | None = None,
    on_prepared: Callable[[Prepared], None] | None = None,
) -> tuple[list[RunResult], dict[str, Any]]:
    """Make an output for every value of a parameter, reading the inputs once.

    ``sweeps`` are as ``--sweep`` (``["scaling=0.3,0.5"]``); several give every combination. Each
    output is what ``run`` makes with that value as an override, beside the plan's own output: of
    ``./merged`` that is ``./merged-scaling-0.3``. Those that are up to date are left alone.
    ``on_prepared`` is called for each. Returns a result for each, and what all took together.
    """
    settings = Settings.of(device, memory, workers, device_memory, offline)
    with Meter() as meter:
        with meter.imports():
            load_libraries(references_of(load_plan(plan, overrides)))
        everything = prepare_sweep(
            plan, sweeps, settings, overrides=overrides, output=output, locked=locked
        )
        jobs = [job_of(prepared) for prepared in everything]
        planned = together(jobs, settings)
        if on_prepared is not None:
            for prepared in everything:
                on_prepared(prepared)
        produced, done = produce(
            jobs,
            lambda waiting: planned if len(waiting) == len(jobs) else together(waiting, settings),
            meter,
            settings,
            force=force,
            progress=progress,
        )
    results = [
        result_of(prepared, each, made(prepared, each), [])
        for prepared, each in zip(everything, produced, strict=True)
    ]
    return results, spent(None, done, meter)


def prepare_sweep(
    plan: str | os.PathLike[str],
    sweeps: Sequence[str],
    settings: Settings,
    *,
    overrides: Sequence[str] = (),
    output: str | os.PathLike[str] | None = None,
    locked: bool = False,
) -> list[Prepared]:
    """Everything that is known of a sweep's outputs before data are read; see ``sweep``.

    Raises PlanError for plans that do not make the same tensors.
    """
    everything: list[Prepared] = []
    for version, place in versions(plan, sweeps, overrides, output):
        like = everything[0] if everything else None
        everything.append(prepare(version, settings, output=place, locked=locked, like=like))
        check_alike(everything[0], everything[-1])
    return everything


def outputs_of(
    plan: str | os.PathLike[str],
    sweeps: Sequence[str],
    *,
    overrides: Sequence[str] = (),
    output: str | os.PathLike[str] | None = None,
) -> list[Path]:
    """Where the outputs of a sweep go; without ``sweeps``, where the plan's only one goes."""
    return [place for _, place in versions(plan, sweeps, overrides, output)]


def versions(
    plan: str | os.PathLike[str],
    sweeps: Sequence[str],
    overrides: Sequence[str],
    output: str | os.PathLike[str] | None,
) -> Iterator[tuple[Plan, Path]]:
    """The plan with each of the values, and where it puts its output."""
    for variant in variants(sweeps):
        version = load_plan(plan, (*overrides, *variant.overrides))
        place = output_of(version, Path(output) if output is not None else None)
        yield version, place.with_name(f"{place.name}-{variant.name}") if sweeps else place


def together(jobs: Sequence[Job], settings: Settings) -> Schedule:
    """The schedule of one pass that makes all jobs; ResourceError where it does not fit."""
    graphs = [job.graph for job in jobs]
    return schedule(*graphs, memory=settings.memory_budget, workers=settings.worker_count)


def check_alike(first: Prepared, other: Prepared) -> None:
    """PlanError where two versions of a plan do not make the same tensors."""
    if _shapes(first) != _shapes(other):
        raise PlanError(
            f"--sweep: {other.output.name} would have other tensors than {first.output.name}, so "
            "they cannot be made together; run them one by one with --set"
        )


def _shapes(prepared: Prepared) -> list[tuple[str, tuple[int, ...]]]:
    return [(tensor.output.name, tensor.output.shape) for tensor in prepared.binding.tensors]
