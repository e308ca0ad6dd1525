"""Producing an output: the graph is executed, everything else is written beside it, and sealed."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from mergeengine.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mergeengine.compiler.graph import Graph
from mergeengine.compiler.schedule import Schedule
from mergeengine.errors import OutputBusyError, ResourceError
from mergeengine.execution.presence import only_the_cpu
from mergeengine.lazy.stored import StoredFile
from mergeengine.output.companions import Companion, CompanionSet
from mergeengine.output.layout import INDEX, Layout
from mergeengine.output.manifest import MANIFEST, Manifest, Model, file_digest, read_manifest
from mergeengine.output.workspace import Workspace, allocated_bytes, output_error, workspace_path
from mergeengine.output.writer import ShardWriter
from mergeengine.plan.plan import OnNonfinite
from mergeengine.units import format_size
from mergeengine.values.digests import digest_of
from mergeengine.workflow.existing import Existing, look, may_replace
from mergeengine.workflow.measure import Meter
from mergeengine.workflow.numeric_findings import (
    not_finite_error,
    not_finite_warnings,
    precision_of,
    precision_warnings,
)
from mergeengine.workflow.settings import Settings

if TYPE_CHECKING:
    from mergeengine.execution.nonfinite import NotFinite
    from mergeengine.execution.pipeline import Pipeline
    from mergeengine.execution.precision import Loss

Phase = Literal["checking", "downloading", "merging", "sealing"]
Progress = Callable[[Phase, int, int], None]
"""Called with the phase, the bytes done in it, and the bytes it has in all."""


@dataclass(frozen=True, slots=True)
class Job:
    """An output to be made, everything decided.

    ``identity`` is the digest of all that decides the output's bytes. ``inputs`` are the models
    whose weights are read, ``files`` those of their files that really are. ``plan``, ``models`` and
    ``decisions`` go into the manifest as they are. ``on_nonfinite``: what to do about infinities
    and NaN among computed values; ``basis`` is the digest of all that decides the weights beside
    it, where that is not all of the identity. ``merged`` are the tensors to which deltas are added.
    """

    name: str
    output: Path
    identity: str
    graph: Graph
    layout: Layout
    inputs: tuple[Checkpoint, ...]
    files: tuple[StoredFile, ...]
    companions: CompanionSet
    plan: Mapping[str, Any]
    models: tuple[Model, ...]
    decisions: Mapping[str, Any]
    on_nonfinite: OnNonfinite = "error"
    merged: tuple[str, ...] = ()
    basis: str = ""

    def missing(self) -> list[tuple[Checkpoint, StoredFile]]:
        """Files of weights that are still to be fetched from the hub."""
        return [(model, file) for model in self.inputs for file in model.missing_files(self.files)]

    def key(self) -> str:
        """What a journal must agree on to be continued: what decides the weights, and these very
        files. Chunks tell themselves where ``on_nonfinite`` mattered."""
        # A hub model is its commit, which the identity has, whenever its files were fetched.
        local = [model for model in self.inputs if model.revision is None]
        files = {entry for model in local for entry in model.identity()}
        headers = [shard.header.hex() for shard in self.layout.shards]
        return digest_of([self.basis or self.identity, sorted(map(list, files)), headers])


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a run holds at most, in bytes of the host and of each accelerator, and its workers."""

    workers: int
    projected_bytes: int
    device_bytes: int | None = None
    device_allowed_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Produced:
    """What became of a job. ``made`` is False where the output was up to date.

    ``precision`` is what a report says of the rounding; None where no deltas were added. What was
    found of the numbers is told of an output that was up to date, too.
    """

    made: bool
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    precision: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """The one reading of the inputs that made the outputs; ``kept`` bytes came from earlier runs,
    and ``transferred`` over a network.

    ``loop`` is what computed flat blocks: the compiled loop's instructions, or torch.
    """

    schedule: Schedule
    bounds: Bounds
    written: int
    kept: int
    transferred: int
    device: str
    loop: str


@dataclass(frozen=True, slots=True)
class _Begun:
    """A job that this run makes: its workspace is locked."""

    job: Job
    workspace: Workspace
    existing: Existing


Scheduler = Callable[[Sequence[Job]], Schedule]
"""Makes the schedule that makes jobs together."""


def produce(
    jobs: Sequence[Job],
    scheduled: Scheduler,
    meter: Meter,
    settings: Settings,
    *,
    force: bool,
    progress: Progress | None,
) -> tuple[list[Produced], Pass | None]:
    """Make those jobs' outputs that are not up to date, all of them in one pass over the inputs;
    see ``Workspace`` for what may be replaced. The pass is None where nothing was to be done.
    """
    tell = progress or (lambda phase, done, total: None)
    waiting = [job for job in jobs if force or look_at(job).state != "up to date"]
    for job in jobs:
        if job not in waiting:
            clear_leftovers(job.output)
    produced = {job.output: _unmade(job) for job in jobs if job not in waiting}
    if not waiting:
        return list(produced.values()), None
    with meter.imports():
        # Not at the top: what is up to date is found without them, and without torch.
        from mergeengine.execution.executor import import_torch_for, loop_name

    schedule = scheduled(waiting)
    with meter.imports():
        import_torch_for(schedule, everything=not only_the_cpu(settings.device))
    pipeline = open_devices(schedule, settings)
    with ExitStack() as stack:
        begun = [each for job in waiting if (each := _begin(job, stack, tell, force=force))]
        there = {each.job.output for each in begun}
        produced |= {job.output: _unmade(job) for job in waiting if job.output not in there}
        if not begun:
            return [produced[job.output] for job in jobs], None
        now = [each.job for each in begun]
        if len(now) < len(waiting):
            schedule = scheduled(now)
            pipeline = open_devices(schedule, settings)
        check_disk(*now)
        meter.lap("prepare")
        _fetch(now, tell)
        meter.lap("download")
        made, digests, findings = _merge(begun, schedule, pipeline, tell)
        meter.lap("merge")
        for each, tensors, found in zip(begun, digests, findings, strict=True):
            _seal(each.job, each.workspace, tensors, found)
            each.workspace.install()
            old = each.existing
            replaced = () if old.state == "absent" else (f"replaced an output: {old.reason}",)
            told = tuple(found["warnings"])
            produced[each.job.output] = Produced(True, replaced, told, found["precision"])
        meter.lap("seal")
    written, kept, transferred = made
    bounds, name = bounds_of(schedule, pipeline), pipeline.name if pipeline else "cpu"
    done = Pass(schedule, bounds, written, kept, transferred, name, loop_name(pipeline))
    return [produced[job.output] for job in jobs], done


def open_devices(schedule: Schedule, settings: Settings) -> "Pipeline | None":
    """The accelerators of a run, None for the CPU; ResourceError where the plan cannot run there.

    Nothing is allocated or read yet.
    """
    if only_the_cpu(settings.device):
        return None
    from mergeengine.execution.device import choose_devices
    from mergeengine.execution.pipeline import open_pipeline

    return open_pipeline(
        schedule,
        choose_devices(settings.device),
        workers=settings.worker_count,
        memory=settings.memory_budget,
        device_memory=settings.device_memory,
    )


def bounds_of(schedule: Schedule, pipeline: "Pipeline | None") -> Bounds:
    """What a schedule holds on the CPU, or by way of accelerators."""
    if pipeline is None:
        return Bounds(schedule.workers, schedule.projected_bytes)
    ring = pipeline.ring
    return Bounds(ring.workers, ring.projected_bytes, ring.device_bytes, pipeline.device_memory)


def _begin(job: Job, stack: ExitStack, tell: Progress, *, force: bool) -> _Begun | None:
    """Lock a job's output; None where another run has made it in the meantime."""
    workspace = stack.enter_context(Workspace(job.output))
    existing = look_at(job)
    if existing.state == "up to date" and not force:
        workspace.discard()
        return None
    if existing.state != "absent" and not force:
        _check_replaceable(job, existing, tell)
    return _Begun(job, workspace, existing)


def _unmade(job: Job) -> Produced:
    """What an output that is up to date was found to be when it was made."""
    manifest = read_manifest(job.output)
    if manifest is None:
        return Produced(False)
    return Produced(False, (), manifest.warnings, manifest.findings.get("precision"))


def clear_leftovers(output: Path) -> None:
    """A run that was killed after its last rename left a workspace, perhaps with an old model."""
    if workspace_path(output).is_dir():
        with suppress(OutputBusyError), Workspace(output) as workspace:
            workspace.discard()


def look_at(job: Job) -> Existing:
    """The state of the job's output."""
    return look(job.output, job.name, job.identity, job.inputs)


def check_disk(*jobs: Job) -> None:
    """ResourceError where the outputs and the downloads do not fit on their disks."""
    shortage = disk_shortage(*jobs)
    if shortage is not None:
        raise ResourceError(f"{shortage}. Make space, or write somewhere else with --output")


def disk_shortage(*jobs: Job) -> str | None:
    """What does not fit, in a sentence. What an earlier partial run holds is counted as free."""
    needs: dict[int, list[int]] = {}  # device -> bytes needed, bytes free
    places = []
    for job in jobs:
        partial = workspace_path(job.output) / "files"
        held = sum(allocated_bytes(path) for path in partial.glob("*.safetensors"))
        places.append((job.output.parent, max(0, job.layout.size - held)))
    places.extend((file.local.parent, file.size) for _, file in _missing(jobs))
    for place, size in places:
        while not place.exists():
            place = place.parent
        entry = needs.setdefault(place.stat().st_dev, [0, shutil.disk_usage(place).free])
        entry[0] += size
        if entry[0] > entry[1]:
            return (
                f"{place}: {format_size(entry[0])} are needed here (output and downloads) and "
                f"{format_size(entry[1])} are free"
            )
    return None


def _check_replaceable(job: Job, existing: Existing, tell: Progress) -> None:
    total = job.layout.size
    done = 0

    def checked(size: int) -> None:
        nonlocal done
        done += size
        tell("checking", min(done, total), total)

    may_replace(job.output, existing, checked)


def _missing(jobs: Sequence[Job]) -> list[tuple[Checkpoint, StoredFile]]:
    """Files that are still to be fetched, each once."""
    return list(
        {file.path: (model, file) for job in jobs for model, file in job.missing()}.values()
    )


def _fetch(jobs: Sequence[Job], tell: Progress) -> None:
    """Download the files of weights that are really read."""
    missing = _missing(jobs)
    total, done = sum(file.size for _, file in missing), 0
    for model, file in missing:
        tell("downloading", done, total)
        model.fetch([file])
        done += file.size
        tell("downloading", done, total)


def _merge(
    begun: Sequence[_Begun], schedule: Schedule, pipeline: "Pipeline | None", tell: Progress
) -> tuple[tuple[int, int, int], list[dict[str, str]], list[dict[str, Any]]]:
    """Write the weights into the workspaces: bytes written, kept, transferred, and for each job
    the digests, and what was found of its numbers."""
    from mergeengine.execution.executor import execute
    from mergeengine.execution.nonfinite import Guard
    from mergeengine.execution.notes import Recall
    from mergeengine.execution.precision import Precision
    from mergeengine.execution.reader import Reader

    guards = [
        Guard(each.job.on_nonfinite, partial(not_finite_error, models=each.job.models))
        for each in begun
    ]
    precision = Precision(schedule)
    with ExitStack() as stack:
        writers = []
        for model, (each, guard) in enumerate(zip(begun, guards, strict=True)):
            job, recall = each.job, Recall(model, each.job.graph.tensors, precision, guard)
            writer = ShardWriter(each.workspace, job.layout, job.key(), recall)
            writers.append(stack.enter_context(writer))
        reader = stack.enter_context(Reader(schedule.transfers))
        total, written = schedule.write_bytes, 0
        kept = sum(writer.kept_bytes for writer in writers)
        lock = Lock()

        def progress(size: int) -> None:
            nonlocal written
            with lock:
                written += size
                # What one output of several lacks is made for all: some of it was there.
                tell("merging", min(kept + written, total), total)

        tell("merging", kept, total)
        strange = execute(
            schedule,
            *writers,
            pipeline=pipeline,
            reader=reader,
            progress=progress,
            precision=precision,
            guards=guards,
        )
        reader.check_unchanged()
        tell("sealing", 0, 1)
        for writer in writers:
            writer.sync()
        findings = [
            _findings(each.job, precision.of(model), found)
            for model, (each, found) in enumerate(zip(begun, strange, strict=True))
        ]
        made = written, kept, reader.transferred
        return made, [writer.digests() for writer in writers], findings


def _findings(job: Job, losses: "list[Loss]", found: "list[NotFinite]") -> dict[str, Any]:
    """As in a manifest."""
    kept = job.on_nonfinite == "keep_target"
    warnings = not_finite_warnings(found, job.models, kept=kept) + precision_warnings(losses)
    return {
        "warnings": warnings,
        "not_finite": {each.tensor: each.count for each in found},
        "precision": precision_of(losses, job.merged) if losses or job.merged else None,
    }


def _seal(
    job: Job, workspace: Workspace, tensors: dict[str, str], findings: dict[str, Any]
) -> None:
    """Write everything beside the weights, the manifest last."""
    files = list(job.companions.files)
    index = job.layout.index()
    if index is not None:
        files.append(Companion(INDEX, index))
    folder = workspace.files
    try:
        _remove_others(folder, {shard.name for shard in job.layout.shards})
        for file in files:
            _write(folder / file.name, file)
        manifest = Manifest(
            engine=f"mergeengine {version('mergeengine')}",
            identity=job.identity,
            plan=job.plan,
            models=job.models,
            decisions=job.decisions,
            tensors=tensors,
            weights={shard.name: shard.size for shard in job.layout.shards},
            companions={file.name: file_digest(folder / file.name) for file in files},
            fingerprint=open_checkpoint(folder).fingerprint(),
            findings=findings,
        )
        _write(folder / MANIFEST, Companion(MANIFEST, manifest.to_bytes()))
    except OSError as error:
        raise output_error(folder, error) from error


def _write(path: Path, file: Companion) -> None:
    path.parent.mkdir(exist_ok=True)
    with file.open() as source, path.open("wb") as destination:
        shutil.copyfileobj(source, destination, 1 << 20)
        destination.flush()
        os.fsync(destination.fileno())


def _remove_others(folder: Path, shards: set[str]) -> None:
    """What an interrupted sealing left: companions are few and are written anew."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in shards:
            path.unlink()
