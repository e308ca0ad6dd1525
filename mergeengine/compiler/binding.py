"""Binding a plan to its checkpoints: for each output tensor, what it is made of and why.

Everything that can be wrong between checkpoints is found here, by headers alone, and told at
once: tensors that are missing, extra, or of another shape or kind.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from mergeengine.checkpoints.aliases import alias_of, redundant_alias
from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.compiler import mergekit_rounding
from mergeengine.compiler.alignment import Aligned, align
from mergeengine.compiler.bound import (
    Binding,
    BoundTensor,
    Delta,
    Kind,
    output_of,
    working_dtype,
)
from mergeengine.compiler.correspondence import Counterparts
from mergeengine.compiler.element_masks import Files, actions_on, masked_delta, misfits
from mergeengine.compiler.merging import (
    merged,
    merges_models,
    method_of,
    settings_at,
    term,
)
from mergeengine.compiler.rules import check_parameters, check_renames, check_rules, shadowed
from mergeengine.compiler.tokens import Found, look_up_tokens
from mergeengine.errors import CheckpointError
from mergeengine.lazy.tensor import LazyTensor
from mergeengine.lazy.weight import Weight, called, difference, node_of
from mergeengine.methods.registry import Method
from mergeengine.methods.transfer import transfer
from mergeengine.plan.plan import DEFAULT_METHOD, Plan, Source
from mergeengine.values.actions import Applied, Keep
from mergeengine.values.anatomy import Anatomy, TensorFacts
from mergeengine.values.masks import decision_of
from mergeengine.values.renaming import ROLES_OF_NAMES

Pair = tuple[Source, Counterparts, Counterparts]
"""A source, its base and its fine-tune."""


@dataclass(slots=True)
class _Findings:
    """Names gathered under the sentence that is said of them."""

    listed: dict[str, list[str]] = field(default_factory=dict)
    ways_out: list[str] = field(default_factory=list)

    def add(self, sentence: str, name: str, way_out: str) -> None:
        self.listed.setdefault(sentence, []).append(name)
        if way_out not in self.ways_out:
            self.ways_out.append(way_out)

    def texts(self) -> list[str]:
        return [
            f"{len(names)} {sentence}:\n" + "\n".join(f"    {name}" for name in names)
            for sentence, names in self.listed.items()
        ]


def bind(
    plan: Plan,
    target: Checkpoint,
    sources: Iterable[tuple[Source, Checkpoint, Checkpoint]],
    files: Files | None = None,
    tokenizer: Checkpoint | None = None,
    tokens: Found | None = None,
) -> Binding:
    """Decide each output tensor. ``sources`` are (source, its base, its fine-tune), ``files`` what
    masks are read from, ``tokenizer`` the model whose tokenizer the output gets. ``tokens`` that
    masks name are looked up where they are not given.

    Raises CheckpointError with the complete list of what does not fit, and PlanError for a mask
    or dtype rule that matches no tensor, and for tokens that the tokenizer has not.
    """
    method = method_of(plan)
    three = list(sources)
    fts = [ft for _, _, ft in three]
    plan, _ = look_up_tokens(plan, tokenizer or target, target, fts, tokens)
    three = [(own, base, ft) for own, (_, base, ft) in zip(plan.sources, three, strict=True)]
    aligned = align(plan, target, three, tokenizer)
    target = aligned.target
    pairs = [(source, *_counterparts(target, source, *two)) for source, *two in aligned.sources]
    anatomy = Anatomy({name: tensor.shape for name, tensor in target.tensors.items()})
    check_parameters(plan, anatomy)
    errors, notes = _Findings(), _Findings()
    tensors = [
        _bound(plan, method, tensor, anatomy, files or {}, pairs, aligned, errors, notes)
        for tensor in target.tensors.values()
    ]
    tensors.extend(_extras(plan, anatomy, pairs, aligned, errors, notes))
    if errors.listed:
        raise CheckpointError(
            "the models do not fit together:\n  "
            + "\n  ".join(errors.texts())
            + "".join(f"\n  {way_out}" for way_out in errors.ways_out)
        )
    for source, base, ft in pairs:
        check_renames(source, base, ft)
        for model in (base, ft):
            for sentence, lines in model.notes():
                for line in lines:
                    notes.add(sentence, line, "")
    facts = [tensor.facts for tensor in tensors]
    unmatched = check_rules(plan, anatomy, facts)
    return Binding(
        tuple(tensors),
        (*aligned.notes, *notes.texts()),
        (*aligned.warnings, *unmatched, *shadowed(plan, facts)),
        aligned.counts,
        aligned.per_token,
    )


def _counterparts(
    target: Checkpoint, source: Source, base: Checkpoint, ft: Checkpoint
) -> tuple[Counterparts, Counterparts]:
    """The models of a source, asked by the target's names; CheckpointError where the plan gives
    two tensors one name."""
    whole = source.whole  # then the base is the target, and bears its names
    found = tuple(
        Counterparts(target, model, role, (), None)
        if own
        else Counterparts(target, model, role, source.renames, source.layer_map)
        for role, model, own in zip(ROLES_OF_NAMES, (base, ft), (whole, False), strict=True)
    )
    clashes = [f"{each.other}: {text}" for each in found for text in each.clashes]
    if clashes:
        raise CheckpointError(
            "`rename` gives two tensors one name:\n    " + "\n    ".join(dict.fromkeys(clashes))
        )
    return found[0], found[1]


def _bound(
    plan: Plan,
    method: Method,
    tensor: Weight,
    anatomy: Anatomy,
    files: Files,
    pairs: list[Pair],
    aligned: Aligned,
    errors: _Findings,
    notes: _Findings,
) -> BoundTensor:
    facts = anatomy.tensor(tensor.name)
    plan_entry = plan.masks.entry_at(facts)
    if plan_entry is not None and plan_entry.keep is not None:
        kept = _kept(plan, tensor, facts, plan_entry.keep, pairs, aligned, errors, notes)
        if kept is not None:
            return kept
    if not tensor.dtype.is_float:
        return _taken(plan, tensor, facts, "not float")
    found: list[Delta] = []
    gap: Kind | None = None
    unmapped = False
    for source, base, ft in pairs:
        own_entry = source.masks.entry_at(facts)
        decisions = (
            source.scaling.at(facts),
            decision_of(plan_entry, facts),
            decision_of(own_entry, facts),
        )
        limit = source.scaling.limit_at(facts)
        frozen = 0.0 in [each.value for each in (*decisions, limit) if each is not None]
        if ft.gets_nothing(tensor.name):
            unmapped = True
            continue
        both = [model.find(tensor) for model in (base, ft)]
        if tensor.name.endswith(".bias"):
            biases = [
                found or model.missing_bias(tensor)
                for found, model in zip(both, (base, ft), strict=True)
            ]
            both = biases if all(biases) else both
        problem = _problem(tensor, both, (base, ft), source, len(pairs) > 1)
        if problem is None and both[0] is not None and both[1] is not None:
            actions: tuple[Applied, ...] = ()
            if not frozen and (own_entry or plan_entry):
                lacking = list(misfits(tensor, files, own_entry, plan_entry))
                for finding in lacking:
                    errors.add(*finding)
                actions = () if lacking else actions_on(own_entry, plan_entry)
            measure = source.scaling.measure_at(facts)
            given = source.parameters, plan.parameters
            own = settings_at(method, facts, *given, per_source=True) if method.options else ()
            found.append(Delta(source, both[0], both[1], *decisions, limit, actions, measure, own))
        elif problem is not None and not frozen:
            kind, sentence, line, way_out = problem
            keep = plan.on_missing if kind == "missing" else plan.on_mismatch
            gap = kind
            if keep == "error":
                errors.add(sentence, line, way_out)
            else:
                notes.add(f"{sentence}; they get no delta from it", line, way_out)
    if (gap is not None or unmapped) and (
        len(found) < method.sources[0] or merges_models(plan, method)
    ):
        return _taken(plan, tensor, facts, gap or "unmapped")
    if method.name != DEFAULT_METHOD:
        return _by_method(plan, method, tensor, facts, found, pairs, files, aligned)
    receiver = LazyTensor(node_of(tensor))
    plain = [LazyTensor(difference(delta.ft, delta.base)) for delta in found]
    weights = [delta.weight(receiver, value) for delta, value in zip(found, plain, strict=True)]
    if any(delta.actions for delta in found):
        plain = _masked(plan, tensor, found, plain, files, aligned)
    value = transfer(receiver, list(zip(weights, plain, strict=True)))
    active = any(delta.coefficient for delta in found)
    return output_of(plan, tensor, facts, value, "merged" if active else "frozen", tuple(found))


def _by_method(
    plan: Plan,
    method: Method,
    tensor: Weight,
    facts: TensorFacts,
    found: list[Delta],
    pairs: list[Pair],
    files: Files,
    aligned: Aligned,
) -> BoundTensor:
    """What another method than transfer makes of the sources: masks of a source change its delta,
    ``scaling`` is its weight, and the plan's masks scale what comes of all.

    A model that lacks a token has the target's row.
    """
    receiver = LazyTensor(node_of(tensor))
    models = merges_models(plan, method)
    if models:
        fts = {source.name: ft.other for source, _, ft in pairs}
        wholes = [aligned.whole(fts[delta.source.name], delta.ft) for delta in found]
        plain = [LazyTensor(node_of(whole)) for whole in wholes]
    else:
        plain = [LazyTensor(difference(delta.ft, delta.base)) for delta in found]
    weights = [delta.scaled(receiver, value) for delta, value in zip(found, plain, strict=True)]
    working = working_dtype(plan, tensor)
    if working is not None:
        weights = [
            mergekit_rounding.weight(plan.method, each, working)
            if isinstance(each, float)
            else each
            for each in weights
        ]
    values = plain
    if any(delta.actions for delta in found):
        values = _masked(plan, tensor, found, plain, files, aligned)
    terms = [
        term(
            plan,
            method,
            delta.source,
            tensor.name,
            value * delta.source_mask.value,
            weight,
            delta.settings,
            LazyTensor(difference(aligned.beside(delta.source, tensor), delta.base)),
        )
        for delta, value, weight in zip(found, values, weights, strict=True)
    ]
    settings = settings_at(method, facts, plan.parameters, per_source=False)
    strength = found[0].plan_mask
    if strength.value == 0 or not (models or any(delta.coefficient for delta in found)):
        return output_of(plan, tensor, facts, receiver, "frozen", tuple(found), settings=settings)
    value = merged(plan, method, tensor.name, receiver, terms, settings, strength)
    return output_of(plan, tensor, facts, value, "merged", tuple(found), settings=settings)


def _masked(
    plan: Plan,
    tensor: Weight,
    found: list[Delta],
    plain: list[LazyTensor],
    files: Files,
    aligned: Aligned,
) -> list[LazyTensor]:
    """The deltas after their masks' actions."""
    named = {delta.source.name: value for delta, value in zip(found, plain, strict=True)}
    return [
        masked_delta(
            delta.source.name,
            aligned.beside(delta.source, tensor),
            delta.base,
            delta.actions,
            delta.coefficient,
            plan.seed,
            named,
            files,
        )
        for delta in found
    ]


def _kept(
    plan: Plan,
    tensor: Weight,
    facts: TensorFacts,
    keep: Keep,
    pairs: list[Pair],
    aligned: Aligned,
    errors: _Findings,
    notes: _Findings,
) -> BoundTensor | None:
    """The tensor of a source's fine-tune in place of the target's; None: the target's stays."""
    if keep.role == "target":
        return None
    source, _, ft = next(each for each in pairs if keep.of in (None, each[0].name))
    found = ft.find(tensor)
    if found is not None:
        found = aligned.whole(ft.other, found)
    problem = _misfit(tensor, found, "source_ft", ft, source, len(pairs) > 1)
    if found is not None and problem is None:
        return output_of(plan, tensor, facts, LazyTensor(node_of(found)), "kept", (), found)
    if problem is not None:
        kind, sentence, line, way_out = problem
        if (plan.on_missing if kind == "missing" else plan.on_mismatch) == "error":
            errors.add(sentence, line, way_out)
        else:
            notes.add(f"{sentence}; they are the target's", line, way_out)
        return _taken(plan, tensor, facts, kind)
    return None


def _problem(
    tensor: Weight,
    both: list[Weight | None],
    models: tuple[Counterparts, Counterparts],
    source: Source,
    several: bool,
) -> tuple[Kind, str, str, str] | None:
    """Why a source has no delta for a tensor: kind, sentence, line of the list, way out."""
    for role, found, model in zip(ROLES_OF_NAMES, both, models, strict=True):
        problem = _misfit(tensor, found, role, model, source, several)
        if problem is not None:
            return problem
    return None


def _misfit(
    tensor: Weight,
    found: Weight | None,
    role: str,
    model: Counterparts,
    source: Source,
    several: bool,
) -> tuple[Kind, str, str, str] | None:
    """Why a model's tensor cannot stand beside the target's; see ``_problem``."""
    of = f" of {source.name}" if several else ""
    if found is None:
        sentence = f"tensors of the target are missing in {role}{of} ({model.other})"
        way = "`on_missing: keep_target` keeps the target's values where there is no delta"
        return "missing", sentence, tensor.name, way
    alike = found.dtype.is_float if tensor.dtype.is_float else found.dtype == tensor.dtype
    if found.shape != tensor.shape or not alike:
        sentence = f"tensors have another shape or kind in {role}{of} ({model.other})"
        line = (
            f"{tensor.name}: {tensor.dtype} {list(tensor.shape)} in the target, "
            f"{found.dtype} {list(found.shape)} there"
        )
        way = "`on_mismatch: keep_target` keeps the target's values where shapes differ"
        return "mismatch", sentence, line, way
    return None


def _extras(
    plan: Plan,
    anatomy: Anatomy,
    pairs: list[Pair],
    aligned: Aligned,
    errors: _Findings,
    notes: _Findings,
) -> Iterable[BoundTensor]:
    """What a fine-tune has and the target has not, as ``on_extra`` says."""
    copied: dict[str, Checkpoint] = {}
    target = aligned.target
    for _, _, model in pairs:
        ft = model.other
        for name, tensor in model.extras():
            tensor = aligned.whole(ft, tensor)
            if (
                alias_of(target, name, tensor.shape) is not None
                and redundant_alias(aligned.stored.get(ft, ft), tensor.name) is not None
            ):
                notes.add(f"tied in the target and repeated in {ft}: left out", name, "")
            elif plan.on_extra == "ignore":
                notes.add(f"only in source_ft ({ft}): left out, as on_extra says", name, "")
            elif plan.on_extra == "error":
                errors.add(
                    f"tensors of source_ft ({ft}) do not exist in the target",
                    name,
                    "`on_extra: ignore` leaves them out, `on_extra: copy` takes them over",
                )
            elif name in copied:
                errors.add(
                    f"tensors would be copied from both {copied[name]} and {ft}",
                    name,
                    "`on_extra: ignore` leaves them out",
                )
            else:
                copied[name] = ft
                notes.add(f"copied from source_ft ({ft}), as on_extra says", name, "")
                taken = called(name, tensor)
                yield _taken(plan, taken, anatomy.tensor(name, tensor.shape), "copied")


def _taken(plan: Plan, tensor: Weight, facts: TensorFacts, kind: Kind) -> BoundTensor:
    return output_of(plan, tensor, facts, LazyTensor(node_of(tensor)), kind, ())
