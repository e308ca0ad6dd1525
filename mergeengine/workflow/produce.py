"""Producing an output: the graph is executed, everything else is written beside it, and sealed."""

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from mergeengine.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mergeengine.compiler.schedule import Schedule
from mergeengine.errors import OutputBusyError, ResourceError
from mergeengine.lazy.stored import StoredFile
from mergeengine.output.companions import Companion, CompanionSet
from mergeengine.output.layout import INDEX, Layout
from mergeengine.output.manifest import MANIFEST, Manifest, Model, digest_of, file_digest
from mergeengine.output.workspace import Workspace, allocated_bytes, output_error, workspace_path
from mergeengine.output.writer import ShardWriter
from mergeengine.units import format_size
from mergeengine.workflow.existing import Existing, look, may_replace
from mergeengine.workflow.measure import Meter
from mergeengine.workflow.settings import Settings

if TYPE_CHECKING:
    from mergeengine.execution.pipeline import Pipeline

Phase = Literal["checking", "downloading", "merging", "sealing"]
Progress = Callable[[Phase, int, int], None]
"""Called with the phase, the bytes done in it, and the bytes it has in all."""


@dataclass(frozen=True, slots=True)
class Job:
    """An output to be made, everything decided.

    ``identity`` is the digest of all that decides the output's bytes. ``inputs`` are the models
    whose weights are read, ``files`` those of their files that really are. ``plan``, ``models`` and
    ``decisions`` go into the manifest as they are.
    """

    name: str
    output: Path
    identity: str
    schedule: Schedule
    layout: Layout
    inputs: tuple[Checkpoint, ...]
    files: tuple[StoredFile, ...]
    companions: CompanionSet
    plan: Mapping[str, Any]
    models: tuple[Model, ...]
    decisions: Mapping[str, Any]

    def missing(self) -> list[tuple[Checkpoint, StoredFile]]:
        """Files of weights that are still to be fetched from the hub."""
        return [(model, file) for model in self.inputs for file in model.missing_files(self.files)]

    def key(self) -> str:
        """What a journal must agree on to be continued: the identity and these very files."""
        # A hub model is its commit, which the identity has, whenever its files were fetched.
        local = [model for model in self.inputs if model.revision is None]
        files = {entry for model in local for entry in model.identity()}
        headers = [shard.header.hex() for shard in self.layout.shards]
        return digest_of([self.identity, sorted(map(list, files)), headers])


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a run holds at most, in bytes of the host and of each accelerator, and its workers."""

    workers: int
    projected_bytes: int
    device_bytes: int | None = None
    device_allowed_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Produced:
    """``made`` is False where the output was up to date; ``kept`` bytes came from earlier runs.

    ``loop`` is what computed flat blocks: the compiled loop's instructions, or torch.
    """

    made: bool
    bounds: Bounds
    kept: int = 0
    device: str = ""
    loop: str = ""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def produce(
    job: Job, meter: Meter, settings: Settings, *, force: bool, progress: Progress | None
) -> Produced:
    """Make a job's output unless it is up to date; see ``Workspace`` for what may be replaced."""
    tell = progress or (lambda phase, done, total: None)
    if not force and look_at(job).state == "up to date":
        _clear_leftovers(job.output)
        return Produced(False, bounds_of(job.schedule, None))
    with meter.imports():
        # Not at the top: what is up to date is found without torch.
        from mergeengine.execution.executor import loop_name

        pipeline = open_devices(job.schedule, settings)
    bounds = bounds_of(job.schedule, pipeline)
    with Workspace(job.output) as workspace:
        # Another run may have finished in the meantime: look again, with the lock.
        existing = look_at(job)
        if existing.state == "up to date" and not force:
            workspace.discard()
            return Produced(False, bounds)
        if existing.state != "absent" and not force:
            _check_replaceable(job, existing, tell)
        check_disk(job)
        meter.lap("prepare")
        _fetch(job, tell)
        meter.lap("download")
        kept, digests, strange = _merge(job, workspace, pipeline, tell)
        meter.lap("merge")
        _seal(job, workspace, digests)
        workspace.install()
        meter.lap("seal")
    replaced = () if existing.state == "absent" else (f"replaced an output: {existing.reason}",)
    name = pipeline.name if pipeline is not None else "cpu"
    return Produced(True, bounds, kept, name, loop_name(pipeline), replaced, _not_finite(strange))


def open_devices(schedule: Schedule, settings: Settings) -> "Pipeline | None":
    """The accelerators of a run, None for the CPU; ResourceError where the plan cannot run there.

    Nothing is allocated or read yet.
    """
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


def _not_finite(names: list[str]) -> tuple[str, ...]:
    if not names:
        return ()
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (
        f"{len(names)} computed tensors hold infinities or NaN: {', '.join(names[:5])}{more}. "
        "An input has them, or values left the range of the output's dtype: such a model is of no "
        "use",
    )


def _clear_leftovers(output: Path) -> None:
    """A run that was killed after its last rename left a workspace, perhaps with an old model."""
    if workspace_path(output).is_dir():
        with suppress(OutputBusyError), Workspace(output) as workspace:
            workspace.discard()


def look_at(job: Job) -> Existing:
    """The state of the job's output."""
    return look(job.output, job.name, job.identity, job.inputs)


def check_disk(job: Job) -> None:
    """ResourceError where the output and the downloads do not fit on their disks."""
    shortage = disk_shortage(job)
    if shortage is not None:
        raise ResourceError(f"{shortage}. Make space, or write somewhere else with --output")


def disk_shortage(job: Job) -> str | None:
    """What does not fit, in a sentence. What an earlier partial run holds is counted as free."""
    partial = workspace_path(job.output) / "files"
    held = sum(allocated_bytes(path) for path in partial.glob("*.safetensors"))
    needs: dict[int, list[int]] = {}  # device -> bytes needed, bytes free
    places = [(job.output.parent, max(0, job.layout.size - held))]
    places.extend((file.path.parent, file.size) for _, file in job.missing())
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


def _fetch(job: Job, tell: Progress) -> None:
    """Download the files of weights that are really read."""
    missing = job.missing()
    total, done = sum(file.size for _, file in missing), 0
    for model, file in missing:
        tell("downloading", done, total)
        model.fetch([file])
        done += file.size
        tell("downloading", done, total)


def _merge(
    job: Job, workspace: Workspace, pipeline: "Pipeline | None", tell: Progress
) -> tuple[int, dict[str, str], list[str]]:
    """Write the weights into the workspace: bytes kept of earlier runs, the digests, and the
    names of tensors with values that are not finite (of what this run computed)."""
    from mergeengine.execution.executor import execute
    from mergeengine.execution.reader import Reader

    total = job.schedule.write_bytes
    with ShardWriter(workspace, job.layout, job.key()) as writer, Reader() as reader:
        kept = done = writer.kept_bytes
        lock = Lock()

        def written(size: int) -> None:
            nonlocal done
            with lock:
                done += size
                tell("merging", done, total)

        tell("merging", done, total)
        strange = execute(job.schedule, writer, pipeline=pipeline, reader=reader, progress=written)
        reader.check_unchanged()
        tell("sealing", 0, 1)
        writer.sync()
        return kept, writer.digests(), strange


def _seal(job: Job, workspace: Workspace, tensors: dict[str, str]) -> None:
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
