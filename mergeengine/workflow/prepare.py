"""From a plan to everything that can be known before data are read."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mergeengine.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mergeengine.checkpoints.config import compare_configs, contradictions, quantized
from mergeengine.compiler.binding import Binding, bind
from mergeengine.compiler.schedule import Schedule, schedule
from mergeengine.errors import CheckpointError, PlanError, VerificationError
from mergeengine.output.layout import Layout, lay_out
from mergeengine.output.lock import PlanLock, lock_path, read_lock
from mergeengine.output.manifest import Model, digest_of
from mergeengine.plan.plan import Plan
from mergeengine.values.references import ModelReference
from mergeengine.workflow.settings import Settings

# Raised when the same plan and inputs would give other bytes than before.
RESULT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Models:
    """The opened checkpoint of each role of a plan; equal references are opened once."""

    target: Checkpoint
    bases: tuple[Checkpoint, ...]
    fts: tuple[Checkpoint, ...]
    tokenizer: Checkpoint
    config: Checkpoint
    generation_config: Checkpoint

    def merged(self) -> tuple[Checkpoint, ...]:
        """The models whose weights are read, each once."""
        return tuple(dict.fromkeys((self.target, *self.bases, *self.fts)))

    def all(self) -> tuple[Checkpoint, ...]:
        companions = (self.tokenizer, self.config, self.generation_config)
        return tuple(dict.fromkeys((*self.merged(), *companions)))


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan bound to its models and scheduled; ``pins`` is what each reference is now.

    ``identity`` is the digest of all that decides the output's bytes.
    """

    plan: Plan
    output: Path
    models: Models
    binding: Binding
    schedule: Schedule
    layout: Layout
    pins: PlanLock
    identity: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def roles(self) -> Iterator[Model]:
        """Every role, its reference as written, and its content."""
        for role, reference in _references(self.plan):
            yield Model(role, reference.text, self.pins.models[reference.text])


def prepare(
    plan: Plan,
    settings: Settings | None = None,
    *,
    output: Path | None = None,
    locked: bool = False,
    update: bool = False,
    block_chunks: int | None = None,
) -> Prepared:
    """Open the models by their headers, bind, lay out and schedule.

    With ``locked`` the plan's lock must name the very same contents; with ``update`` it does not
    hold hub references at their commits. ``block_chunks`` fixes the block size, for measurements.
    """
    settings = settings or Settings()
    path = output or plan.output.path
    if path is None:
        raise PlanError(
            f"{plan.file}: the plan does not say where its output goes: write `output: "
            "{path: ./merged}` or use --output"
        )
    lock = read_lock(lock_path(plan.file)) or PlanLock()
    models = _open_models(plan, PlanLock() if update else lock, settings)
    pins = _pins(plan, models)
    if locked:
        check_lock(plan, lock, pins)
    notes, warnings = _examine(models)
    sources = list(zip(plan.sources, models.bases, models.fts, strict=True))
    binding = bind(plan, models.target, sources)
    described = [(t.output.name, t.output.dtype, t.output.shape) for t in binding.tensors]
    return Prepared(
        plan=plan,
        output=path.absolute(),
        models=models,
        binding=binding,
        schedule=schedule(
            binding.graph,
            memory=settings.memory_budget,
            workers=settings.worker_count,
            block_chunks=block_chunks,
        ),
        layout=lay_out(described, plan.output.shard_size),
        pins=pins,
        identity=_identity(plan, pins),
        notes=(*notes, *binding.notes),
        warnings=tuple(warnings),
    )


def check_lock(plan: Plan, lock: PlanLock, pins: PlanLock) -> None:
    """VerificationError where a reference is not what the lock says."""
    path = lock_path(plan.file)
    if not lock.models:
        raise VerificationError(
            f"{path}: there is no lock; `mergeengine lock {plan.file}` writes it"
        )
    differing = [
        f"    {reference}: {lock.models.get(reference, 'not locked')}, now {content}"
        for reference, content in sorted(pins.models.items())
        if lock.models.get(reference) != content
    ]
    if differing:
        raise VerificationError(
            f"{path}: the inputs are not the locked ones:\n"
            + "\n".join(differing)
            + f"\n  restore them, or accept them with `mergeengine lock {plan.file} --update`"
        )


def _references(plan: Plan) -> Iterator[tuple[str, ModelReference]]:
    yield "target", plan.target
    for source in plan.sources:
        of = f" ({source.name})" if len(plan.sources) > 1 else ""
        yield f"source_base{of}", source.source_base
        yield f"source_ft{of}", source.source_ft
    for role in ("tokenizer", "config", "generation_config"):
        chosen = getattr(plan.output, role)
        if isinstance(chosen, ModelReference):
            yield role, chosen


def _open_models(plan: Plan, lock: PlanLock, settings: Settings) -> Models:
    wanted = dict.fromkeys(reference for _, reference in _references(plan))

    def opened(reference: ModelReference) -> Checkpoint:
        pinned = lock.commit_of(reference.text) if not reference.is_local else None
        return open_checkpoint(reference, pinned=pinned, offline=settings.offline)

    with ThreadPoolExecutor(4) as pool:  # headers are small: mostly waiting for disk or network
        found = dict(zip(wanted, pool.map(opened, wanted), strict=True))
    target = found[plan.target]
    fts = tuple(found[source.source_ft] for source in plan.sources)

    def donor(chosen: str | ModelReference) -> Checkpoint:
        if isinstance(chosen, ModelReference):
            return found[chosen]
        return target if chosen == "target" else fts[0]

    return Models(
        target=target,
        bases=tuple(found[source.source_base] for source in plan.sources),
        fts=fts,
        tokenizer=donor(plan.output.tokenizer),
        config=donor(plan.output.config),
        generation_config=donor(plan.output.generation_config),
    )


def _examine(models: Models) -> tuple[list[str], list[str]]:
    """Notes and warnings from the configs; CheckpointError for what forbids a merge."""
    for model in models.merged():
        problem = quantized(model.config)
        if problem is not None:
            raise CheckpointError(f"{model}: {problem}")
    others = [(str(m), m.config) for m in models.merged() if m is not models.target]
    report = compare_configs(str(models.target), models.target.config, others)
    if report.errors:
        raise CheckpointError(
            "the models are not versions of one architecture:\n  " + "\n  ".join(report.errors)
        )
    warnings = [
        f"{model}: {text}"
        for model in models.merged()
        for text in contradictions(model.config, model.tensors)
    ]
    return [f"configs differ: {note}" for note in report.notes], warnings


def _pins(plan: Plan, models: Models) -> PlanLock:
    by_reference = {model.reference: model for model in models.all()}
    return PlanLock({ref.text: by_reference[ref].fingerprint() for _, ref in _references(plan)})


def _identity(plan: Plan, pins: PlanLock) -> str:
    return digest_of([RESULT_VERSION, plan.name, plan.identity_document, dict(pins.models)])
