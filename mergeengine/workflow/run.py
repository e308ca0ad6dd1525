"""Running a plan: everything from its file to a sealed output and a lock beside it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from mergeengine.output.card import MergedModel, model_card, read_licence
from mergeengine.output.companions import Companion, CompanionSet, gather_companions
from mergeengine.output.lock import lock_path, write_lock
from mergeengine.plan.load import load_plan
from mergeengine.plan.plan import Plan
from mergeengine.workflow.measure import Meter
from mergeengine.workflow.prepare import Prepared, prepare
from mergeengine.workflow.produce import Job, Produced, Progress, produce
from mergeengine.workflow.settings import Settings

CARD = "README.md"


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run did. ``made`` is False where the output was up to date already.

    ``report`` holds what depends on this machine: seconds, bytes, memory, device.
    """

    output: Path
    made: bool
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    report: dict[str, Any] = field(default_factory=dict)


def run(
    plan: Plan | str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    output: str | os.PathLike[str] | None = None,
    device: str = "auto",
    memory: int | None = None,
    workers: int | None = None,
    force: bool = False,
    locked: bool = False,
    offline: bool = False,
    progress: Progress | None = None,
    block_chunks: int | None = None,
) -> RunResult:
    """Make a plan's output, or find that it is up to date.

    ``overrides`` are as ``--set`` (``"scaling=0.5"``); ``memory`` is in bytes. The lock beside
    the plan is written unless ``overrides``, ``output`` or ``locked`` are given. ``block_chunks``
    fixes the block size, for measurements. Raises errors of ``mergeengine.errors``; whatever
    happens, nothing half-made is under the output's name, and finished work is kept for the next
    run of the same plan.
    """
    if not isinstance(plan, Plan):
        plan = load_plan(plan, overrides)
    elif overrides:
        raise ValueError("overrides belong to the reading of a plan: give them to load_plan")
    settings = Settings(device=device, memory=memory, workers=workers, offline=offline)
    with Meter() as meter:
        place = Path(output) if output is not None else None
        prepared = prepare(plan, settings, output=place, locked=locked, block_chunks=block_chunks)
        job = job_of(prepared)
        produced = produce(job, meter, device=device, force=force, progress=progress)
        if not overrides and output is None and not locked:
            write_lock(lock_path(plan.file), prepared.pins)
    return RunResult(
        output=prepared.output,
        made=produced.made,
        notes=(*prepared.notes, *produced.notes),
        warnings=(*prepared.warnings, *produced.warnings),
        report=_report(job, prepared, produced, meter),
    )


def job_of(prepared: Prepared) -> Job:
    """The job that a prepared plan asks for."""
    plan = prepared.plan
    return Job(
        name=plan.name,
        output=prepared.output,
        identity=prepared.identity,
        schedule=prepared.schedule,
        layout=prepared.layout,
        inputs=prepared.models.merged(),
        files=prepared.binding.graph.files(),
        companions=lambda: _companions(prepared),
        plan={"name": plan.name, "document": plan.identity_document},
        models=tuple(prepared.roles()),
        decisions={"tensors": prepared.binding.counts(), "notes": list(prepared.notes)},
    )


def _companions(prepared: Prepared) -> CompanionSet:
    models = prepared.models
    gathered = gather_companions(
        target=models.target,
        tokenizer=models.tokenizer,
        config=models.config,
        generation_config=models.generation_config,
        tensors={t.output.name: (t.output.dtype, t.output.shape) for t in prepared.binding.tensors},
    )
    card = Companion(CARD, _card(prepared).encode())
    return CompanionSet((*gathered.files, card), gathered.notes, gathered.warnings)


def _card(prepared: Prepared) -> str:
    models = {str(model): model for model in prepared.models.all()}
    references = [
        MergedModel(
            role.role,
            role.reference,
            models[role.reference].revision,
            read_licence(models[role.reference]),
        )
        for role in prepared.roles()
    ]
    document = prepared.plan.identity_document
    return model_card(
        name=prepared.plan.name,
        plan_text=yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100),
        references=references,
        version=version("mergeengine"),
    )


def _report(job: Job, prepared: Prepared, produced: Produced, meter: Meter) -> dict[str, Any]:
    schedule = job.schedule
    seconds = meter.seconds.get("merge")
    written = schedule.write_bytes - produced.kept
    # What an earlier run finished need not be read again; the rest is read in proportion.
    read = (
        round(schedule.read_bytes * written / schedule.write_bytes) if schedule.write_bytes else 0
    )
    return {
        "plan": job.name,
        "output": str(job.output),
        "made": produced.made,
        "identity": job.identity,
        "seconds": meter.seconds,
        "bytes": {
            "read": read if produced.made else 0,
            "written": written if produced.made else 0,
            "kept_from_earlier_run": produced.kept,
        },
        "gigabytes_per_second": round((read + written) / seconds / 1e9, 3) if seconds else None,
        "memory": {"projected_bytes": schedule.projected_bytes, "measured_bytes": meter.peak_bytes},
        "device": produced.device,
        "workers": schedule.workers,
        "block_chunks": schedule.block_chunks,
        "tensors": prepared.binding.counts(),
    }
