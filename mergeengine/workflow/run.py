"""Running a plan: everything from its file to a sealed output and a lock beside it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeengine.errors import OutputError
from mergeengine.output.lock import lock_path, write_lock
from mergeengine.output.manifest import Model
from mergeengine.plan.plan import Plan
from mergeengine.workflow.measure import Meter
from mergeengine.workflow.models import load_libraries, references_of
from mergeengine.workflow.prepare import Prepared, prepare
from mergeengine.workflow.produce import Job, Produced, Progress, produce
from mergeengine.workflow.reading import load_plan
from mergeengine.workflow.report import made, spent
from mergeengine.workflow.settings import Settings


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
    memory: int | str | None = None,
    workers: int | None = None,
    device_memory: int | str | None = None,
    force: bool = False,
    locked: bool = False,
    offline: bool = False,
    progress: Progress | None = None,
    on_prepared: Callable[[Prepared], None] | None = None,
    block_chunks: int | None = None,
) -> RunResult:
    """Make a plan's output, or find that it is up to date.

    ``overrides`` are as ``--set`` (``["scaling=0.5"]``), ``device`` as ``--device``
    (``"cuda:0,cuda:1"``); ``memory`` is in bytes, or ``"2GiB"``, as is ``device_memory`` of each
    accelerator.
    ``force`` makes the output anew whatever is there. The lock beside the plan is written unless
    ``overrides``, ``output`` or ``locked`` are given. ``on_prepared`` is called with what is known
    before data are read. ``block_chunks`` fixes the block size, for measurements. Raises errors of
    ``mergeengine.errors``; whatever happens, nothing half-made is under the output's name, and
    finished work is kept for the next run of the same plan.
    """
    if not isinstance(plan, Plan):
        plan = load_plan(plan, overrides)
    elif overrides:
        raise ValueError("overrides belong to the reading of a plan: give them to load_plan")
    settings = Settings.of(device, memory, workers, device_memory, offline)
    late: list[str] = []
    with Meter() as meter:
        with meter.imports():
            load_libraries(references_of(plan))
        place = Path(output) if output is not None else None
        prepared = prepare(plan, settings, output=place, locked=locked, block_chunks=block_chunks)
        if on_prepared is not None:
            on_prepared(prepared)
        (produced,), done = produce(
            [job_of(prepared)],
            lambda _: prepared.schedule,
            meter,
            settings,
            force=force,
            progress=progress,
        )
        if not overrides and output is None and not locked:
            try:
                write_lock(lock_path(plan.file), prepared.pins)
            except OutputError as error:  # the output is complete all the same
                late.append(f"the lock of the inputs is missing: {error}")
    report = {**made(prepared, produced), **spent(prepared.schedule, done, meter)}
    return result_of(prepared, produced, report, late)


def job_of(prepared: Prepared) -> Job:
    """The job that a prepared plan asks for."""
    plan = prepared.plan
    return Job(
        name=plan.name,
        output=prepared.output,
        identity=prepared.identity,
        graph=prepared.binding.graph,
        layout=prepared.layout,
        inputs=prepared.models.inputs(),
        files=prepared.binding.graph.files(),
        companions=prepared.companions,
        plan={
            "name": plan.name,
            "document": plan.identity_document,
            **prepared.pins.substituted,
        },
        models=tuple(
            Model(role, model.reference.text, prepared.pins.models[model.reference.text])
            for role, model in prepared.models.roles()
        ),
        decisions={"tensors": prepared.binding.counts(), "notes": list(prepared.notes)},
        on_nonfinite=plan.on_nonfinite,
        basis=prepared.basis,
        merged=tuple(
            tensor.output.name
            for tensor in prepared.binding.tensors
            if tensor.kind == "merged" and tensor.output.node is not tensor.output.target
        ),
    )


def result_of(
    prepared: Prepared, produced: Produced, report: dict[str, Any], late: list[str]
) -> RunResult:
    """What a run says of one of its outputs; ``late`` are further warnings."""
    return RunResult(
        output=prepared.output,
        made=produced.made,
        notes=(*prepared.notes, *produced.notes),
        warnings=(*prepared.warnings, *produced.warnings, *late),
        report=report,
    )
