"""The merges of a chain, prepared; those that are never written as parts of others."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mergeengine.chain.chain import Chain, Merge, Step
from mergeengine.checkpoints.folder import LocalFolder
from mergeengine.errors import MergeEngineError
from mergeengine.lazy.stored import Stored, StoredFile
from mergeengine.output.lock import PlanLock
from mergeengine.values.references import ModelReference
from mergeengine.workflow.models import Models
from mergeengine.workflow.planned import NotFusableError, PlannedCheckpoint
from mergeengine.workflow.prepare import Prepared, prepare, resolve
from mergeengine.workflow.produce import look_at
from mergeengine.workflow.run import job_of
from mergeengine.workflow.settings import Settings


class Merges:
    """Prepares the merges of one chain. ``written`` are those that cannot be parts of others, and
    so are written after all."""

    def __init__(self, chain: Chain, settings: Settings, lock: PlanLock) -> None:
        self.chain = chain
        self.settings = settings
        self.lock = lock
        self.fused = {step.id for step in chain.fused()}
        self.written: set[str] = set()

    @contextmanager
    def prepared(self, step: Step) -> Iterator[Prepared]:
        """Everything about a merge that is known before data are read, as long as this lasts.

        NotFusableError where the merges that it is made of cannot be parts of it.
        """
        assert isinstance(step.work, Merge)
        with self._inside(step) as planned:
            yield prepare(step.work.plan, self.settings, lock=self.lock, planned=planned)

    @contextmanager
    def models(self, step: Step) -> Iterator[Models]:
        """The models of a merge; those that are not written as they would be."""
        assert isinstance(step.work, Merge)
        with self._inside(step) as planned:
            yield resolve(step.work.plan, self.settings, lock=self.lock, planned=planned)[0]

    @contextmanager
    def _inside(self, step: Step) -> Iterator[list[PlannedCheckpoint]]:
        """The merges that are to be parts of one."""
        inside = [used for used in step.uses if used in self.fused and used not in self.written]
        with ExitStack() as stack:
            yield [stack.enter_context(self._planned(self.chain[used])) for used in inside]

    def is_up_to_date(self, step: Step) -> bool:
        """Whether a merge's output is what would be made, as its manifest tells."""
        try:
            with self.prepared(step) as prepared:
                return look_at(job_of(prepared)).state == "up to date"
        except (MergeEngineError, NotFusableError):  # what it takes is not there now
            return False

    @contextmanager
    def _planned(self, step: Step) -> Iterator[PlannedCheckpoint]:
        """The output of a merge as it would be. Its small files lie in a temporary folder."""
        with self.prepared(step) as prepared, TemporaryDirectory(prefix="mergeengine-") as name:
            folder = Path(name)
            for file in prepared.companions.files:
                path = folder / file.name
                path.parent.mkdir(exist_ok=True)
                with file.open() as source:
                    path.write_bytes(source.read())
            yield planned_checkpoint(step, prepared, folder)


def planned_checkpoint(step: Step, prepared: Prepared, folder: Path) -> PlannedCheckpoint:
    """What the headers of a merge's output would say; ``folder`` has the files beside them."""
    reference = ModelReference(step.id, path=step.output)
    shards = [StoredFile(step.output / each.name, each.size) for each in prepared.layout.shards]
    order = sorted(prepared.layout.tensors, key=lambda placed: (placed.shard, placed.offset))
    tensors = {
        placed.name: Stored(
            step.id, placed.name, placed.dtype, placed.shape, shards[placed.shard], placed.offset
        )
        for placed in order
    }
    outputs = {tensor.name: tensor for tensor in prepared.binding.graph.tensors}
    store = LocalFolder(folder)
    config = folder / "config.json"
    return PlannedCheckpoint(
        reference=reference,
        tensors=tensors,
        files=(),
        config=json.loads(config.read_text(encoding="utf-8")) if config.exists() else None,
        folder=folder,
        _store=store,
        outputs={stored: outputs[name] for name, stored in tensors.items()},
        made_of=prepared.models.inputs(),
        content=prepared.identity,
    )
