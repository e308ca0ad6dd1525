"""What a run would do, and what would stop it: everything that is known without reading data."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mergeengine.compiler.schedule import Schedule
from mergeengine.errors import ResourceError
from mergeengine.lazy.partition import chunk_count
from mergeengine.output.journal import read_claims, read_key
from mergeengine.output.manifest import Model
from mergeengine.output.workspace import workspace_path
from mergeengine.plan.plan import Plan
from mergeengine.workflow.existing import Existing
from mergeengine.workflow.prepare import Prepared, output_of, prepare
from mergeengine.workflow.produce import (
    Bounds,
    Job,
    bounds_of,
    disk_shortage,
    look_at,
    open_devices,
)
from mergeengine.workflow.run import job_of
from mergeengine.workflow.settings import Settings
from mergeengine.workflow.sweep import check_alike, together, versions

Decision = Literal["nothing", "make", "replace", "refuse"]

_UNBOUNDED = 1 << 62


@dataclass(frozen=True, slots=True)
class Status:
    """A run foreseen.

    ``decision`` and ``reason`` say what would happen to the output; ``shortages`` what does not
    fit this machine, one sentence each. ``unfinished`` is the part (0 to 1) of the output that a
    stopped run left and that a run would go on from. ``memory`` is of the CPU unless the device
    was named, since only torch can tell which there are. Sizes are in bytes.
    """

    prepared: Prepared
    models: tuple[Model, ...]
    existing: Existing
    decision: Decision
    reason: str
    shortages: tuple[str, ...]
    unfinished: float
    download_bytes: int
    free_bytes: int
    allowed_bytes: int
    memory: Bounds

    def document(self) -> dict[str, Any]:
        """The same as plain data."""
        prepared = self.prepared
        schedule = prepared.schedule
        return {
            "plan": prepared.plan.name,
            "output": str(prepared.output),
            "decision": self.decision,
            "state": self.existing.state,
            "reason": self.reason,
            "unfinished": round(self.unfinished, 4),
            "shortages": list(self.shortages),
            "identity": prepared.identity,
            "models": [
                {"role": model.role, "reference": model.reference, "content": model.content}
                for model in self.models
            ],
            "tensors": prepared.binding.counts(),
            "shards": len(prepared.layout.shards),
            "bytes": {
                "read": schedule.read_bytes,
                "write": schedule.write_bytes,
                "download": self.download_bytes,
                "remote": schedule.remote_bytes(),
                "free_disk": self.free_bytes,
            },
            "memory": {
                "projected_bytes": self.memory.projected_bytes,
                "allowed_bytes": self.allowed_bytes,
                "device_projected_bytes": self.memory.device_bytes,
                "device_allowed_bytes": self.memory.device_allowed_bytes,
            },
            "workers": self.memory.workers,
            "block_chunks": schedule.block_chunks,
            "notes": list(prepared.notes),
            "warnings": list(prepared.warnings),
        }


@dataclass(frozen=True, slots=True)
class SweepStatus:
    """A sweep foreseen: each output, and the one pass that makes those that are not up to date.

    ``schedule`` is None where nothing would be done, or where it does not fit in memory.
    """

    outputs: tuple[Status, ...]
    schedule: Schedule | None
    memory: Bounds
    shortages: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """The same as plain data."""
        planned = self.schedule
        return {
            "outputs": [status.document() for status in self.outputs],
            "bytes": {
                "read": planned.read_bytes if planned is not None else 0,
                "write": planned.write_bytes if planned is not None else 0,
            },
            "memory": {
                "projected_bytes": self.memory.projected_bytes,
                "device_projected_bytes": self.memory.device_bytes,
            },
            "shortages": list(self.shortages),
        }


def foresee(
    plan: Plan,
    settings: Settings,
    *,
    output: Path | None = None,
    locked: bool = False,
    force: bool = False,
    like: Prepared | None = None,
) -> Status:
    """What a run with these very options would do. What does not fit is told, not raised.

    Models that are those of ``like`` are not opened again.
    """
    output_of(plan, output)
    shortages = []
    try:
        prepared = prepare(plan, settings, output=output, locked=locked, like=like)
    except ResourceError as error:
        shortages.append(str(error))
        smallest = replace(settings, memory=_UNBOUNDED, workers=1)
        prepared = prepare(plan, smallest, output=output, locked=locked, block_chunks=1, like=like)
    job = job_of(prepared)
    existing = look_at(job)
    decision, reason = _decide(existing, force)
    memory, missing = _memory(prepared.schedule, settings)
    if decision in ("make", "replace"):
        shortages.extend(filter(None, (missing, disk_shortage(job))))
    return Status(
        prepared=prepared,
        models=job.models,
        existing=existing,
        decision=decision,
        reason=reason,
        shortages=tuple(shortages),
        unfinished=_unfinished(job) if decision != "nothing" else 0.0,
        download_bytes=sum(file.size for _, file in job.missing()),
        free_bytes=_free(job.output),
        allowed_bytes=settings.memory_budget,
        memory=memory,
    )


def foresee_sweep(
    plan: Path,
    sweeps: Sequence[str],
    settings: Settings,
    *,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    locked: bool = False,
    force: bool = False,
) -> SweepStatus:
    """What a sweep with these very options would do. What does not fit is told, not raised."""
    found: list[Status] = []
    for version, place in versions(plan, sweeps, overrides, output):
        like = found[0].prepared if found else None
        status = foresee(version, settings, output=place, locked=locked, force=force, like=like)
        found.append(status)
        check_alike(found[0].prepared, status.prepared)
    waiting = [job_of(each.prepared) for each in found if each.decision in ("make", "replace")]
    planned, memory = None, Bounds(0, 0)
    shortages: list[str] = []
    if waiting:
        shortages.extend(filter(None, (disk_shortage(*waiting),)))
        try:
            planned = together(waiting, settings)
            memory, missing = _memory(planned, settings)
            shortages.extend(filter(None, (missing,)))
        except ResourceError as error:
            shortages.append(str(error))
    return SweepStatus(tuple(found), planned, memory, tuple(shortages))


def _decide(existing: Existing, force: bool) -> tuple[Decision, str]:
    match existing.state:
        case "absent":
            return "make", existing.reason
        case "up to date":
            if force:
                return "replace", "it is up to date, and --force makes it anew"
            return "nothing", existing.reason
        case "earlier version":
            return "replace", existing.reason
        case _ if force:
            return "replace", f"{existing.reason}, and --force replaces it"
    return "refuse", f"{existing.reason}: use --force to replace it, or --output"


def _memory(schedule: Schedule, settings: Settings) -> tuple[Bounds, str | None]:
    """What a run holds, and why it cannot run on the devices that were named.

    The two that are everywhere need no torch to tell.
    """
    pipeline, missing = None, None
    if settings.device not in ("auto", "cpu"):
        try:
            pipeline = open_devices(schedule, settings)
        except ResourceError as error:
            missing = str(error)
    return bounds_of(schedule, pipeline), missing


def _unfinished(job: Job) -> float:
    """The part of the output that a journal of this very job claims."""
    journal = workspace_path(job.output) / "journal"
    if read_key(journal) != job.key():
        return 0.0
    claimed = {(claim.tensor, claim.chunk) for claim in read_claims(journal)}
    return min(
        1.0,
        len(claimed) / sum(chunk_count(t.nbytes // t.dtype.itemsize) for t in job.layout.tensors),
    )


def _free(place: Path) -> int:
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
