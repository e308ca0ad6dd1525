"""From a plan to everything that can be known before data are read."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergeengine.compiler.binding import bind
from mergeengine.compiler.bound import Binding
from mergeengine.compiler.merging import method_of
from mergeengine.compiler.requantise import requantised
from mergeengine.compiler.schedule import Schedule, schedule
from mergeengine.compiler.tokens import Found, look_up_tokens
from mergeengine.errors import OutputError, PlanError, VerificationError
from mergeengine.execution import native
from mergeengine.output.companions import CompanionSet
from mergeengine.output.layout import Layout, lay_out
from mergeengine.output.lock import PlanLock, lock_path, read_lock
from mergeengine.plan.plan import Plan
from mergeengine.values.digests import digest_of
from mergeengine.values.references import ModelReference
from mergeengine.workflow.accompany import CARD, accompany
from mergeengine.workflow.existing import check_apart
from mergeengine.workflow.models import Models, open_models
from mergeengine.workflow.planned import PlannedCheckpoint, fused
from mergeengine.workflow.settings import Settings

# Raised when the same plan and inputs would give other bytes than before.
RESULT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Bound:
    """A binding, and everything worth knowing about how the models fit."""

    binding: Binding
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan bound to its models and scheduled; ``pins`` is what each reference is now.

    ``identity`` is the digest of all that decides the output's bytes, ``basis`` that of the same
    without `on_nonfinite`.
    """

    plan: Plan
    output: Path
    models: Models
    binding: Binding
    schedule: Schedule
    layout: Layout
    companions: CompanionSet
    pins: PlanLock
    identity: str
    basis: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Planning makes many small objects that stay and hold no cycles: looking through all of them
    again and again would find nothing, and take as long as the planning itself."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_collector_paused()
def prepare(
    plan: Plan,
    settings: Settings | None = None,
    *,
    output: Path | None = None,
    locked: bool = False,
    block_chunks: int | None = None,
    like: Prepared | None = None,
    lock: PlanLock | None = None,
    planned: Sequence[PlannedCheckpoint] = (),
) -> Prepared:
    """Open the models by their headers, bind, lay out and schedule.

    With ``locked`` the plan's lock must name the very same contents. ``block_chunks`` fixes the
    block size, for measurements. Where the models are those of ``like``, they are not opened again.
    ``lock`` stands for the one beside the plan. What is ``planned`` is not opened either: its graph
    becomes a part of this one.
    """
    settings = settings or Settings()
    path = output_of(plan, output)
    method_of(plan)  # what is wrong with it is told before anything is opened
    if like is not None and like.plan.models == plan.models:
        models, pins = like.models, _pinned(plan, like.models, like.pins.models)
    else:
        models, pins = resolve(plan, settings, locked=locked, lock=lock, planned=planned)
    if plan.file.resolve().is_relative_to(path.resolve()):
        raise OutputError(f"{path}: the plan lies there; choose a folder of its own")
    check_apart(path, models.inputs())
    bound = bind_models(plan, models, pins.substituted.get("tokens"))
    companions = accompany(plan, models, bound.binding)
    if planned:
        bound = replace(bound, binding=fused(bound.binding, planned))
    without_on_nonfinite = {**plan.identity_document}
    without_on_nonfinite.pop("on_nonfinite", None)
    described = [(t.output.name, t.output.dtype, t.output.shape) for t in bound.binding.tensors]
    return Prepared(
        plan=plan,
        output=path,
        models=models,
        binding=bound.binding,
        schedule=schedule(
            bound.binding.graph,
            memory=settings.memory_budget,
            workers=settings.worker_count,
            block_chunks=block_chunks,
        ),
        layout=lay_out(described, plan.output.shard_size),
        companions=companions,
        pins=pins,
        identity=_identity(plan, plan.identity_document, pins, companions),
        basis=_identity(plan, without_on_nonfinite, pins, companions),
        notes=(*plan.notes, *bound.notes, *companions.notes),
        warnings=(
            *plan.warnings,
            *bound.warnings,
            *_zero_deltas(plan, pins),
            *companions.warnings,
            *([refused] if (refused := native.refused()) else []),
        ),
    )


def _zero_deltas(plan: Plan, pins: PlanLock) -> list[str]:
    return [
        f"{source.name}: source_base ({source.source_base}) and source_ft ({source.source_ft}) are "
        "the same model, as far as their digests tell: the delta is zero"
        for source in plan.sources
        if not source.whole
        and _content(source.source_base, pins) == _content(source.source_ft, pins)
    ]


def _content(reference: ModelReference, pins: PlanLock) -> list[object]:
    """What a model is: its digest, and of a stack those of its parts and which layers they are."""
    if not reference.stack:
        return [pins.models[reference.text]]
    return [
        (layer, _content(slab.model, pins), slab.layers)
        for layer, slab in enumerate(reference.stack)
    ]


def output_of(plan: Plan, output: Path | None) -> Path:
    """Where the output goes, absolute; PlanError where neither plan nor ``output`` says it."""
    path = output or plan.output.path
    if path is None:
        raise PlanError(
            f"{plan.file}: the plan does not say where its output goes: write `output: "
            "{path: ./merged}` or use --output"
        )
    return path.absolute()


def resolve(
    plan: Plan,
    settings: Settings,
    *,
    locked: bool = False,
    update: bool = False,
    lock: PlanLock | None = None,
    planned: Sequence[PlannedCheckpoint] = (),
) -> tuple[Models, PlanLock]:
    """Open the models by their headers, and say what each reference is now.

    Hub references are held at the commits of the plan's lock, unless with ``update``. With
    ``locked`` every reference must be what the lock says.
    """
    if lock is None:
        lock = read_lock(lock_path(plan.file)) or PlanLock()
    held = PlanLock() if update else lock
    models = open_models(plan, held, offline=settings.offline, given=planned)
    pins = _pinned(plan, models, models.pins().models)
    if locked:
        check_lock(plan, lock, pins)
    return models, pins


def _pinned(plan: Plan, models: Models, contents: Mapping[str, str]) -> PlanLock:
    """With the ids of tokens that masks name: the files of a tokenizer are no part of a pin."""
    _, tokens = look_up_tokens(plan, models.output_tokenizer, models.target, models.fts)
    looked_up = {"tokens": tokens} if tokens else {}
    return PlanLock(contents, {**plan.substituted.document(), **looked_up})


def bind_models(plan: Plan, models: Models, tokens: Found | None = None) -> Bound:
    """Decide each output tensor; CheckpointError where the models do not fit together. ``tokens``
    are those that were looked up already."""
    notes, warnings = models.examine(plan)
    sources = list(zip(plan.sources, models.bases, models.fts, strict=True))
    files = {mask.reference: mask.tensors for mask in models.masks}
    binding = bind(plan, models.target, sources, files, models.output_tokenizer, tokens)
    if plan.output.quantization == "keep":
        binding = requantised(binding, models.target)
    return Bound(binding, (*notes, *binding.notes), (*warnings, *binding.warnings))


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
    differing += _differing_substitutions(lock, pins)
    if differing:
        raise VerificationError(
            f"{path}: the inputs are not the locked ones:\n"
            + "\n".join(differing)
            + f"\n  restore them, or accept them with `mergeengine lock {plan.file} --update`"
        )


def _differing_substitutions(lock: PlanLock, pins: PlanLock) -> list[str]:
    """Variables are the plan's own and may be set; what comes from outside of it is locked."""
    lines = []
    for part, what in (
        ("environment", "${{env:{}}}"),
        ("includes", "include {}"),
        ("tokens", "tokens of {}"),
    ):
        locked, now = lock.substituted.get(part, {}), pins.substituted.get(part, {})
        lines += [
            f"    {what.format(name)}: {locked.get(name, 'not locked')}, "
            f"now {now.get(name, 'not used')}"
            for name in sorted({*locked, *now})
            if locked.get(name) != now.get(name)
        ]
    return lines


def _identity(
    plan: Plan, document: Mapping[str, Any], pins: PlanLock, companions: CompanionSet
) -> str:
    """The card is left out: it tells what the rest says, and the engine's version."""
    beside = {file.name: file.digest() for file in companions.files if file.name != CARD}
    tokens = [pins.substituted["tokens"]] if "tokens" in pins.substituted else []
    return digest_of([RESULT_VERSION, plan.name, document, dict(pins.models), beside, *tokens])
