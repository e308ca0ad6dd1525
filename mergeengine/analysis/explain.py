"""Why each output tensor is what it is: its formula, and the plan's line behind each number."""

from collections.abc import Iterator
from dataclasses import dataclass

from mergeengine.compiler.bound import Binding, BoundTensor, Delta, working_dtype
from mergeengine.compiler.merging import merges_models, method_of
from mergeengine.lazy.weight import added_to, node_of
from mergeengine.plan.plan import DEFAULT_METHOD, Plan
from mergeengine.values.anatomy import layer_of
from mergeengine.values.decisions import Decision
from mergeengine.values.selectors import fits, spans


@dataclass(frozen=True, slots=True)
class Factor:
    """One number of a coefficient, in the plan's words, and where they stand (None: a default)."""

    value: float
    text: str
    at: str | None


@dataclass(frozen=True, slots=True)
class Term:
    """One delta's part; ``base`` and ``ft`` are the names of the tensors it is the difference of.

    A coefficient of 0 leaves the delta out: it is not read. ``delta`` is what the coefficient
    multiplies: the difference, and around it what masks do to it.
    """

    source: str
    coefficient: float
    factors: tuple[Factor, ...]
    base: str
    ft: str
    delta: str = "(source_ft − source_base)"


@dataclass(frozen=True, slots=True)
class Explanation:
    """One output tensor. ``reasons`` are sentences about what the formula does not show."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str
    formula: str
    reasons: tuple[str, ...]
    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that are made in the same way; layers that differ in nothing else share a label."""

    labels: tuple[tuple[str, str], ...]
    example: Explanation


def explain(plan: Plan, binding: Binding, glob: str | None = None) -> tuple[Explanation, ...]:
    """Every output tensor, or those whose whole name fits ``glob``."""
    return tuple(
        _explanation(plan, binding, tensor)
        for tensor in binding.tensors
        if glob is None or fits((glob,), tensor.output.name)
    )


def group(explanations: tuple[Explanation, ...]) -> tuple[Group, ...]:
    """Put together what is made alike, in order of first appearance."""
    alike: dict[object, list[Explanation]] = {}
    for each in explanations:
        alike.setdefault((each.formula, each.reasons, _unnamed(each)), []).append(each)
    return tuple(Group(tuple(labels(members)), members[0]) for members in alike.values())


def describe(tensor: Explanation) -> str:
    """``bfloat16 [512, 256]``"""
    return f"{tensor.dtype} {list(tensor.shape)}"


def _explanation(plan: Plan, binding: Binding, tensor: BoundTensor) -> Explanation:
    several = len(plan.sources) > 1
    models = merges_models(plan, method_of(plan))
    terms = tuple(_term(delta, several, models) for delta in tensor.deltas)
    origin = "source_ft" if tensor.kind in ("copied", "kept") else "target"
    if plan.method != DEFAULT_METHOD and tensor.kind == "merged":
        formula = _method_formula(plan, tensor, terms)
    else:
        formula = origin + "".join(
            _text(term, delta)
            for term, delta in zip(terms, tensor.deltas, strict=True)
            if term.coefficient
        )
    return Explanation(
        name=tensor.output.name,
        dtype=tensor.output.dtype.name,
        shape=tensor.output.shape,
        kind=tensor.kind,
        formula=formula,
        reasons=tuple(_reasons(plan, binding, tensor)),
        terms=terms,
    )


def _method_formula(plan: Plan, tensor: BoundTensor, terms: tuple[Term, ...]) -> str:
    """``target + ties(0.5 · (a: source_ft − source_base) [density: 0.2], ...; lambda: 1)``"""
    method = method_of(plan)
    models = merges_models(plan, method)
    parts = []
    for delta, term in zip(tensor.deltas, terms, strict=True):
        weight = f"{delta.scaling.value:.6g} · " if method.weighted else ""
        own = ", ".join(setting.text for setting in delta.settings)
        parts.append(f"{weight}{term.delta}{f' [{own}]' if own else ''}")
    settings = ", ".join(setting.text for setting in tensor.settings)
    call = f"{method.name}({', '.join(parts)}{f'; {settings}' if settings else ''})"
    strength = tensor.deltas[0].plan_mask.value
    share = "" if strength == 1 else f"{strength:.6g} · "
    if models:
        return call if not share else f"target + {share}({call} − target)"
    return f"target + {share}{call}"


def _term(delta: Delta, several: bool, models: bool) -> Term:
    decisions = [delta.scaling, *(d for d in (delta.plan_mask, delta.source_mask) if d.position)]
    decisions += [each.decision for each in delta.settings if each.decision.position]
    if delta.scaling.position is None and len(decisions) > 1 and delta.settings:
        del decisions[0]
    return Term(
        source=delta.source.name,
        coefficient=delta.coefficient,
        factors=tuple(_factor(decision) for decision in decisions),
        base=delta.base.name,
        ft=delta.ft.name,
        delta=delta.source.name
        if models
        else _delta(delta, f"{delta.source.name}: " if several else ""),
    )


def _delta(delta: Delta, of: str) -> str:
    """``(source_ft − source_base)``, ``top(0.2, source_ft − source_base)``, ``(2 · B·A)``."""
    text = f"{of}{added_to(delta.ft, delta.base) or 'source_ft − source_base'}"
    for each in delta.actions:
        text = each.action.shown(text)
    return text if delta.actions else f"({text})"


def _factor(decision: Decision) -> Factor:
    at = None if decision.position is None else str(decision.position)
    text = "scaling: 1, the default" if at is None else decision.text
    return Factor(decision.value, text, at)


def _text(term: Term, delta: Delta) -> str:
    sign = "−" if term.coefficient < 0 else "+"
    size = f"{abs(term.coefficient):.6g}"
    norms = "‖target‖ / ‖source_ft − source_base‖"
    if delta.limit is not None:
        masks = f"{abs(delta.plan_mask.value * delta.source_mask.value):.6g} · "
        bounded = f"min({abs(delta.scaling.value):.6g}, {delta.limit.value:.6g} · {norms})"
        size = f"{'' if masks == '1 · ' else masks}{bounded}"
    elif delta.measure == "ratio":
        size = f"{size} · {norms}"
    return f" {sign} {size} · {term.delta}"


def _reasons(plan: Plan, binding: Binding, tensor: BoundTensor) -> Iterator[str]:
    if tensor.output.name in binding.per_token:
        counts = binding.vocabulary
        yield (
            f"vocabularies differ: of {counts['rows']} rows {counts['delta']} have a delta, "
            f"{counts['copied']} are copied from the sources, {counts['kept']} are the target's"
        )
    match tensor.kind:
        case "frozen":
            yield "frozen: the scale of every delta is 0, and none is read"
        case "not float":
            yield "numbers that are not floating point are the target's"
        case "missing":
            yield f"there is no delta for it, and `on_missing: {plan.on_missing}`"
        case "mismatch":
            yield f"the delta has another shape or kind, and `on_mismatch: {plan.on_mismatch}`"
        case "unmapped":
            yield "its layer is not in `layer_map`: it gets no delta"
        case "copied":
            yield f"only {tensor.origin.source} has it, and `on_extra: {plan.on_extra}`"
        case "kept":
            entry = plan.masks.entry_at(tensor.facts)
            assert entry is not None
            at = "the plan" if entry.position is None else str(entry.position)
            yield f"the tensor of {tensor.origin.source}: {entry.text} ({at})"
        case "scales":
            yield "the scales of a weight that is written in 8 bits, found from what is written"
        case "merged":
            pass
    rule = plan.output.dtype.rule_at(tensor.facts) if tensor.origin.dtype.is_float else None
    if rule is not None and rule.dtype != tensor.origin.dtype:
        at = "the plan" if rule.position is None else str(rule.position)
        yield f"{tensor.origin.dtype} there; written as {rule.dtype}: {rule.text} ({at})"
    working = working_dtype(plan, tensor.origin)
    if working is not None:
        yield f"rounded as {plan.numerics.compatibility} does, in {working}"
    for setting in tensor.settings:
        if setting.decision.position is not None:
            yield f"{setting.decision.text} ({setting.decision.position})"
    for delta in tensor.deltas:
        if delta.coefficient and node_of(delta.ft) is node_of(delta.base):
            yield f"the adapter of {delta.source.name} does not change it: the delta is zero"
        if delta.limit is not None and delta.coefficient:
            yield f"the norm of the delta is bounded: {delta.limit.text} ({delta.limit.position})"
        for stored in (delta.base, delta.ft):
            if stored.name != tensor.output.name and delta.coefficient:
                yield f"in {stored.source} it is {stored.name}"


def _unnamed(each: Explanation) -> object:
    return tuple((term.source, term.coefficient, term.factors) for term in each.terms)


def labels(members: list[Explanation]) -> Iterator[tuple[str, str]]:
    """Name and description; ``layers.{2-5,7}.`` for layers that are alike in all else."""
    layers: dict[tuple[str, str], list[int]] = {}
    for each in members:
        layer = layer_of(each.name)
        key = (_template(each.name, layer), describe(each))
        layers.setdefault(key, []).extend([] if layer is None else [layer])
    for (template, described), numbers in layers.items():
        told = ",".join(spans(sorted(numbers)))
        braces = f"{{{told}}}" if len(numbers) > 1 else told
        yield template.replace("\0", braces), described


def _template(name: str, layer: int | None) -> str:
    """The name with NUL in the place of its layer."""
    if layer is None:
        return name
    parts = name.split(".")
    place = next(n for n, part in enumerate(parts) if part.isdecimal() and int(part) == layer)
    return ".".join([*parts[:place], "\0", *parts[place + 1 :]])
