"""A plan's method: whether the plan fits it, and what it makes of one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeengine.errors import PlanError
from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.masking import random_key
from mergeengine.methods.registry import Coefficient, Method, Option, Term, made, methods
from mergeengine.plan.plan import Plan, Source
from mergeengine.values.anatomy import TensorFacts
from mergeengine.values.choices import Choice
from mergeengine.values.decisions import Decision, number_text
from mergeengine.values.nearest import did_you_mean
from mergeengine.values.parameters import Form, Number, Parameter
from mergeengine.values.positions import Position

Given = Mapping[str, Parameter | Choice]


@dataclass(frozen=True, slots=True)
class Setting:
    """A parameter of a method as one tensor has it; ``decision.position`` None: a default."""

    name: str
    value: float | int | bool | str
    decision: Decision

    @property
    def text(self) -> str:
        """``density: 0.2``"""
        if isinstance(self.value, bool):
            return f"{self.name}: {str(self.value).lower()}"
        number = isinstance(self.value, int | float)
        return f"{self.name}: {f'{self.value:.6g}' if number else self.value}"


def method_of(plan: Plan) -> Method:
    """The plan's method. PlanError, with everything that does not fit it, where the plan is not one
    of it."""
    method = methods().get(plan.method)
    if method is None:
        hint = did_you_mean(plan.method, methods()) or f"; there are {', '.join(methods())}"
        raise PlanError(f"{plan.method_position}: there is no method `{plan.method}`{hint}")
    problems = list(_problems(plan, method))
    if problems:
        raise PlanError("\n".join(f"{at or plan.file}: {text}" for at, text in problems))
    return method


def merges_models(plan: Plan, method: Method) -> bool:
    """Whether the method is given models, and not deltas."""
    return method.space == "both" and all(source.whole for source in plan.sources)


def settings_at(
    method: Method, facts: TensorFacts, *given: Given, per_source: bool
) -> tuple[Setting, ...]:
    """Of one source's parameters, or of the method's own, what each is for a tensor. Of several
    places where a plan gives it the first counts."""
    found = []
    for option in method.options:
        if option.per_source != per_source:
            continue
        written = next((each[option.name] for each in given if option.name in each), None)
        found.append(_setting(option, written, facts))
    return tuple(found)


def merged(
    plan: Plan,
    method: Method,
    name: str,
    target: LazyTensor,
    terms: Sequence[Term[Any]],
    settings: Sequence[Setting],
    strength: Decision,
) -> LazyTensor:
    """What the method makes of a tensor; of its change only the share that the plan's masks say."""
    parameters: Any = made(method.parameters, {each.name: each.value for each in settings})
    try:
        change = method.merge(target, terms, parameters)
    except ValueError as error:
        raise PlanError(
            f"{plan.method_position}: `{method.name}` cannot merge {name}: {error}"
        ) from error
    if merges_models(plan, method):
        whole = strength.value == 1
        return change if whole else target + strength.value * (change - target)
    return target + strength.value * change


def term(
    plan: Plan,
    method: Method,
    source: Source,
    tensor: str,
    value: LazyTensor,
    weight: Coefficient,
    settings: Sequence[Setting],
    shift: LazyTensor,
) -> Term[Any]:
    """One source's part, as a method is given it."""
    own: Any = made(method.own, {each.name: each.value for each in settings})
    key = random_key(plan.seed, source.name, "method", tensor)
    return Term(source.name, value, weight, own, shift, key)


def _setting(option: Option, written: Parameter | Choice | None, facts: TensorFacts) -> Setting:
    if isinstance(written, Choice):
        return Setting(option.name, written.value, Decision(0.0, written.position, written.text))
    if written is None:
        default = option.default
        if isinstance(default, bool | int | str):
            return Setting(option.name, default, Decision(0.0))
        decision = Parameter(option.name, default).at(facts)
    else:
        decision = written.at(facts)
    number = int(decision.value) if option.kind == "integer" else decision.value
    return Setting(option.name, number, decision)


# --- what does not fit ---------------------------------------------------------------------

_Problem = tuple[Position | None, str]


def _problems(plan: Plan, method: Method) -> Iterator[_Problem]:
    at = plan.method_position
    least, most = method.sources
    count = len(plan.sources)
    if count < least or (most is not None and count > most):
        yield at, f"`{method.name}` takes {method.sources_text}, and the plan has {count}"
    models = [source for source in plan.sources if source.whole]
    if method.space == "both" and models and len(models) < count:
        other = next(source for source in plan.sources if not source.whole)
        yield (
            other.position,
            f"`{method.name}` merges models or deltas: give all sources a `model`, or none",
        )
    if not plan.own_target and not merges_models(plan, method):
        yield at, f"`target` is missing: `{method.name}` changes a model, the target"
    for source in plan.sources:
        amount = source.scaling.amount
        if not method.weighted and amount.position is not None:
            yield amount.position, f"`{method.name}` gives its sources no weights: no `scaling`"
        if merges_models(plan, method):
            yield from _masked_models(plan, source)
        yield from _unfit(method, source.parameters, per_source=True)
    yield from _unfit(method, plan.parameters, per_source=False)


def _masked_models(plan: Plan, source: Source) -> Iterator[_Problem]:
    if source.scaling.measure == "ratio" or source.scaling.at_most is not None:
        yield source.scaling.amount.position, "norms scale deltas; a model has a factor"
    for entry in source.masks.entries:
        yield entry.position, "only deltas have masks of their own; use `scaling` with rules"
    if source is not plan.sources[0]:
        return
    for entry in plan.masks.entries:
        if entry.actions:
            yield (
                entry.position,
                f"only deltas have elements that are chosen ({entry.actions[0].text}); of models "
                "`scale` and `keep` are possible",
            )


def _unfit(method: Method, given: Given, *, per_source: bool) -> Iterator[_Problem]:
    known = {each.name: each for each in method.options if each.per_source or not per_source}
    for name, written in given.items():
        option = known.get(name)
        if option is None:
            yield written.position, _unknown(method, name, known, per_source=per_source)
            continue
        text = _unfit_value(option, written)
        if text is not None:
            yield written.position, text


def _unknown(method: Method, name: str, known: Mapping[str, Option], *, per_source: bool) -> str:
    where = "for a source" if per_source else "here"
    if per_source and any(option.name == name for option in method.options):
        return f"`{name}` is the same for all sources: write it under the plan's `parameters`"
    hint = did_you_mean(name, known)
    if not hint:
        listed = ", ".join(f"`{each}`" for each in known)
        hint = f"; {f'it has {listed}' if listed else 'it has none'} {where}"
    return f"`{method.name}` has no parameter `{name}`{hint}"


def _unfit_value(option: Option, written: Parameter | Choice) -> str | None:
    """What is wrong with a value; None where nothing is."""
    if isinstance(written, Choice):
        found = written.text.removeprefix(f"{written.key}: ")
        fits = (
            isinstance(written.value, bool)
            if option.kind == "flag"
            else option.kind == "choice" and written.value in option.choices
        )
        return None if fits else f"`{option.name}`: expected {option.expected}, found {found}"
    if option.kind in ("flag", "choice"):
        return f"`{option.name}`: expected {option.expected}, found {written.form.text}"
    if option.kind == "integer" and not _is_whole(written.form):
        return f"`{option.name}`: expected {option.expected}, found {written.form.text}"
    for number in written.numbers():
        if not option.allows(number):
            return f"`{option.name}`: expected {option.expected}, found {number_text(number)}"
    return None


def _is_whole(form: Form) -> bool:
    return isinstance(form, Number) and form.value == int(form.value)
