"""What a chain takes from outside: models, each opened once, and files."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mergeengine.chain.chain import Chain, Command, Evaluation, Merge, Step
from mergeengine.checkpoints.checkpoint import Checkpoint, Kind, open_checkpoint
from mergeengine.errors import CheckpointError, PlanError, VerificationError
from mergeengine.output.lock import PlanLock
from mergeengine.output.manifest import file_digest
from mergeengine.plan.plan import Plan
from mergeengine.values.references import ModelReference, local_path, parse_reference
from mergeengine.workflow.chain.sealing import content_of_model
from mergeengine.workflow.models import references_of


@dataclass(slots=True)
class Inputs:
    """The models and files that are not the chain's own. Hub models stay at the commits of
    ``lock``; with ``locked`` every model must be what it says."""

    chain: Chain
    lock: PlanLock
    offline: bool = False
    locked: bool = False
    pins: dict[str, str] = field(default_factory=dict)
    _opened: dict[ModelReference, Checkpoint] = field(default_factory=dict)
    _contents: dict[ModelReference, str] = field(default_factory=dict)

    def of(self, step: Step) -> Iterator[tuple[str, ModelReference, Kind]]:
        """Name, reference, and which of its weights are read, of each model of a step."""
        if isinstance(step.work, Merge):
            yield from self._of_plan(step.work.plan, step.uses)
            return
        for name in step.models:
            yield name, self.reference(name, step), "model"

    def reference(self, name: str, step: Step) -> ModelReference:
        """What a name of `models`, or a reference that stands in the step itself, means."""
        known = self.chain.models.get(name)
        return known or parse_reference(name, self.chain.folder, step.position)

    def _of_plan(
        self, plan: Plan, steps: tuple[str, ...]
    ) -> Iterator[tuple[str, ModelReference, Kind]]:
        for reference, kind in references_of(plan).items():
            if reference.text not in steps:
                yield reference.text, reference, kind

    def open(self, reference: ModelReference, weights: Kind = "model") -> Checkpoint:
        """The model; CheckpointError with the place where the chain names it."""
        if reference not in self._opened:
            pinned = None if reference.repo is None else self.lock.commit_of(reference.text)
            try:
                found = open_checkpoint(
                    reference, pinned=pinned, offline=self.offline, weights=weights
                )
            except CheckpointError as error:
                raise CheckpointError(f"{reference.position}: {error}") from error
            self._opened[reference] = found
            if weights != "none":
                self._pin(reference, found)
        return self._opened[reference]

    def _pin(self, reference: ModelReference, model: Checkpoint) -> None:
        content = model.fingerprint()
        self.pins[reference.text] = content
        locked = self.lock.models.get(reference.text, "not locked")
        if self.locked and locked != content:
            raise VerificationError(
                f"{reference.position}: {reference} is not the locked one: {locked}, now {content}"
            )

    def content(self, reference: ModelReference, weights: Kind) -> str:
        """What a model is now."""
        if reference not in self._contents:
            self._contents[reference] = content_of_model(self.open(reference, weights))
        return self._contents[reference]

    def folder(self, reference: ModelReference) -> Path:
        """Where a command finds a model: all of it is fetched first."""
        model = self.open(reference)
        model.fetch(model.files)
        for name in model.companions():
            model.companion(name)
        if reference.path is not None:
            return reference.path
        assert model.folder is not None
        return model.folder

    def files(self, step: Step) -> dict[str, str]:
        """The files that a command or an evaluation lists, with digests of what is in them."""
        found: dict[str, str] = {}
        work = step.work
        listed: tuple[str, ...] = ()
        if isinstance(work, Command):
            listed = work.files
        elif isinstance(work, Evaluation) and work.task_folder is not None:
            listed = (work.task_folder,)
        for name in listed:
            path = local_path(name, self.chain.folder)
            try:
                if path.is_dir():
                    inside = sorted(each for each in path.rglob("*") if each.is_file())
                    for each in inside:
                        if "__pycache__" not in each.parts:
                            shown = f"{name.rstrip('/')}/{each.relative_to(path).as_posix()}"
                            found[shown] = file_digest(each)
                else:
                    found[name] = file_digest(path)
            except OSError as error:
                raise PlanError(
                    f"{step.position}: step `{step.id}`: the file {name} cannot be read: "
                    f"{error.strerror}"
                ) from error
        return found
