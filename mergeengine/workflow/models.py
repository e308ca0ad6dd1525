"""The models of a plan, opened: each role's checkpoint, and what each reference is pinned to."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from mergeengine.checkpoints.adapter import adapted
from mergeengine.checkpoints.checkpoint import Checkpoint, Kind, open_checkpoint
from mergeengine.checkpoints.config import compare_configs, contradictions
from mergeengine.checkpoints.quantised import quantised
from mergeengine.checkpoints.stacked import stacked
from mergeengine.compiler.output_tokens import output_tokenizer
from mergeengine.errors import CheckpointError
from mergeengine.output.lock import PlanLock
from mergeengine.output.tokenizer_files import has_tokenizer
from mergeengine.plan.plan import Plan
from mergeengine.values.references import ModelReference
from mergeengine.workflow.planned import PlannedCheckpoint

_DONORS = ("tokenizer", "config", "generation_config")


@dataclass(frozen=True, slots=True)
class Models:
    """The opened checkpoint of each role of a plan; equal references are opened once.

    ``output_tokenizer`` is ``tokenizer``, or the target in its place, with the tokens that the
    output's tokenizer has besides.
    """

    target: Checkpoint
    bases: tuple[Checkpoint, ...]
    fts: tuple[Checkpoint, ...]
    tokenizer: Checkpoint
    output_tokenizer: Checkpoint
    config: Checkpoint
    generation_config: Checkpoint
    source_names: tuple[str, ...]
    masks: tuple[Checkpoint, ...] = ()
    planned: tuple[PlannedCheckpoint, ...] = ()
    whole: tuple[bool, ...] = ()

    def merged(self) -> tuple[Checkpoint, ...]:
        """The models whose weights are read, each once."""
        return tuple(dict.fromkeys((self.target, *self.bases, *self.fts)))

    def inputs(self) -> tuple[Checkpoint, ...]:
        """What has the files of those (an adapter and its base each for itself) and of masks.

        In the place of a merge that is part of this one stand the models that it is made of.
        """
        places = [place for model in self.merged() for place in model.places]
        read = [place for place in places if place not in self.planned]
        behind = [model for each in self.planned for model in each.made_of]
        return tuple(dict.fromkeys((*read, *behind, *self.masks)))

    def roles(self) -> Iterator[tuple[str, Checkpoint]]:
        """Every role with its model; donors of companions only where they are other models."""
        yield from self._places("target", self.target)
        whole = self.whole or (False,) * len(self.fts)
        for name, base, ft, alone in zip(
            self.source_names, self.bases, self.fts, whole, strict=True
        ):
            of = f" ({name})" if len(self.source_names) > 1 else ""
            if alone:
                yield from self._places(f"model{of}", ft)
                continue
            yield from self._places(f"source_base{of}", base)
            yield from self._places(f"source_ft{of}", ft)
        named = {*self.merged(), *(place for model in self.merged() for place in model.places)}
        for role in _DONORS:
            model: Checkpoint = getattr(self, role)
            if model not in named:
                yield role, model
        for mask in self.masks:
            yield "mask", mask

    def _places(self, role: str, model: Checkpoint) -> Iterator[tuple[str, Checkpoint]]:
        """A model where it lies, or its parts: the base of an adapter where it is no other's role,
        and of a stack each model once."""
        if not model.parts:
            yield role, model
        elif model.reference.adapts is not None:
            adapter, base = model.parts
            yield role, adapter
            if base not in self.merged():
                yield f"base of {role}", base
        else:
            for place in model.places:
                yield f"layers of {role}", place

    def pins(self) -> PlanLock:
        """What each reference is now. Files beside the weights are no part of a local pin."""
        models = dict.fromkeys(model for _, model in self.roles())
        return PlanLock({model.reference.text: model.fingerprint() for model in models})

    def examine(self, plan: Plan) -> tuple[list[str], list[str]]:
        """Notes and warnings from the configs; CheckpointError for what forbids a merge."""
        for model in self.merged():
            problem = quantised(model.config)
            if problem is not None:
                raise CheckpointError(f"{model}: {problem}")
        others = [(str(m), m.config) for m in self.merged() if m is not self.target]
        report = compare_configs(
            str(self.target),
            self.target.config,
            others,
            layers_differ=any(source.layer_map is not None for source in plan.sources),
            names_differ=any(source.renames for source in plan.sources),
        )
        if report.errors:
            raise CheckpointError(
                "the models are not versions of one architecture:\n  " + "\n  ".join(report.errors)
            )
        warnings = [
            f"{model}: {text}"
            for model in self.merged()
            for text in contradictions(model.config, model.tensors)
        ]
        notes = [note for model in self.merged() for note in model.notes]
        notes += [f"configs differ: {note}" for note in report.notes]
        return notes, [*(text for model in self.merged() for text in model.warnings), *warnings]


def load_libraries(references: Iterable[ModelReference]) -> None:
    """Import what remote models are read with now: not to be measured as work."""
    for reference in references:
        if reference.url is not None:
            from mergeengine.checkpoints.remote import load_library

            with suppress(CheckpointError):  # told where the model is opened
                load_library(reference.url)


def references_of(plan: Plan) -> dict[ModelReference, Kind]:
    """Every model that a plan names, and which weights of it are wanted."""
    donors = [getattr(plan.output, role) for role in _DONORS]
    wanted: dict[ModelReference, Kind] = {
        reference: "none" for reference in donors if isinstance(reference, ModelReference)
    }
    merged = [each for reference in plan.merged for each in reference.each()]
    wanted.update((each.alone, "adapter") for each in merged if each.adapts is not None)
    wanted.update((each, "model") for each in merged if each.adapts is None)
    wanted.update((file, "model") for file in plan.mask_files)
    return wanted


def open_models(
    plan: Plan, lock: PlanLock, *, offline: bool, given: Sequence[PlannedCheckpoint] = ()
) -> Models:
    """Open everything that a plan names; hub references at the commits that ``lock`` has.

    What is ``given`` is not opened.
    """
    ready = {model.reference: model for model in given}
    wanted = references_of(plan)
    _check_told_apart(wanted)
    merged = plan.merged
    for reference in (each for composite in merged for each in composite.each()):
        if reference.adapts is not None and wanted[reference.alone] != "adapter":
            raise CheckpointError(
                f"{reference.position}: {reference} is named as an adapter and as a whole model"
            )

    def opened(reference: ModelReference) -> Checkpoint:
        if reference in ready:
            return ready[reference]
        pinned = None if reference.repo is None else lock.commit_of(reference.text)
        return open_checkpoint(reference, pinned=pinned, offline=offline, weights=wanted[reference])

    with ThreadPoolExecutor(4) as pool:  # headers are small: mostly waiting for disk or network
        pending = {reference: pool.submit(opened, reference) for reference in wanted}
    failed = {
        f"{reference.position}: {error}" if reference.position else str(error): error
        for reference, future in pending.items()
        if isinstance(error := future.exception(), CheckpointError)
    }
    if failed:
        raise CheckpointError("\n".join(failed)) from next(iter(failed.values()))
    found = {reference: future.result() for reference, future in pending.items()}
    for reference in merged:
        _make(reference, found)
    target = found[plan.target]
    fts = tuple(found[source.source_ft] for source in plan.sources)

    def donor(chosen: str | ModelReference, *, tokenizer: bool = False) -> Checkpoint:
        if isinstance(chosen, ModelReference):
            return found[chosen]
        model = target if chosen == "target" else fts[0]
        if model.reference.adapts is None:
            return model
        adapter = model.parts[0]
        return adapter if tokenizer and has_tokenizer(adapter) else model.beside

    tokenizer = donor(plan.output.tokenizer, tokenizer=True)
    return Models(
        target=target,
        bases=tuple(found[source.source_base] for source in plan.sources),
        fts=fts,
        tokenizer=tokenizer,
        output_tokenizer=output_tokenizer(plan, tokenizer, target, fts),
        config=donor(plan.output.config),
        generation_config=donor(plan.output.generation_config),
        source_names=tuple(source.name for source in plan.sources),
        masks=tuple(found[file] for file in plan.mask_files),
        planned=tuple(given),
        whole=tuple(source.whole for source in plan.sources),
    )


def _make(reference: ModelReference, found: dict[ModelReference, Checkpoint]) -> Checkpoint:
    """An adapter on its base, or a stack, of what was opened; what it is made of joins `found`."""
    if reference in found:
        return found[reference]
    if reference.stack:
        parts = [_make(slab.model, found) for slab in reference.stack]
        found[reference] = stacked(reference, parts)
        return found[reference]
    assert reference.adapts is not None
    try:
        found[reference] = adapted(_make(reference.adapts, found), found[reference.alone])
    except CheckpointError as error:
        raise CheckpointError(f"{reference.position}: {error}") from error
    return found[reference]


def _check_told_apart(references: Iterable[ModelReference]) -> None:
    """CheckpointError where two URLs differ only in what is not written down of them."""
    seen: dict[str, ModelReference] = {}
    for reference in references:
        other = seen.setdefault(reference.text, reference)
        if other.url != reference.url:
            raise CheckpointError(
                f"{reference.position}: {reference} differs from the model at {other.position} "
                "only in its query, which no lock or manifest records: give them other paths"
            )
