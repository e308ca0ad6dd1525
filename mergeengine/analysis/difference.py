"""What a change to a plan changes in its output: settings, models, and each tensor's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mergeengine.analysis.explain import Explanation, labels
from mergeengine.plan.plan import Plan

# What these decide is told tensor by tensor, or as a model.
_TOLD_ELSEWHERE = {
    "base", "target", "source_base", "source_ft", "scaling", "masks", "sources", "output.dtype",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two plans: with what each role's model is, and all its tensors. Files of masks and
    tokens that were looked up are roles of their own, ``mask FILE`` and ``token TEXT of MODEL``."""

    plan: Plan
    models: Mapping[str, tuple[str, str]]  # role -> reference, content
    tensors: tuple[Explanation, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """Tensors that change alike: `labels` as `explain` has them, `lines` what is different."""

    labels: tuple[tuple[str, str], ...]
    names: tuple[str, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """`settings` and models as ``what: old → new``; `changes` of tensors; `same`: the others, which
    have other values all the same where the content of an input changed."""

    settings: tuple[str, ...]
    changes: tuple[Change, ...]
    same: int
    inputs_changed: bool = False


def difference(old: Side, new: Side) -> Difference:
    """From headers alone. Sources are told apart by their names."""
    before = {each.name: each for each in old.tensors}
    after = {each.name: each for each in new.tensors}
    alike: dict[tuple[str, ...], list[Explanation]] = {}
    for name in (*before, *(name for name in after if name not in before)):
        lines = tuple(_lines(before.get(name), after.get(name)))
        alike.setdefault(lines, []).append(after.get(name) or before[name])
    same = alike.pop((), [])
    changes = (
        Change(tuple(labels(members)), tuple(each.name for each in members), lines)
        for lines, members in alike.items()
    )
    settings = (*_models(old.models, new.models), *_settings(old.plan, new.plan))
    inputs_changed = any(
        old.models[role][1] != content
        for role, (reference, content) in new.models.items()
        if role in old.models and old.models[role][0] == reference
    )
    return Difference(settings, tuple(changes), len(same), inputs_changed)


def _lines(old: Explanation | None, new: Explanation | None) -> Iterator[str]:
    """What is different about one tensor, a line each."""
    if old is None or new is None:
        yield "only in the new output" if old is None else "no longer in the output"
        return
    before = {term.source: term.coefficient for term in old.terms}
    after = {term.source: term.coefficient for term in new.terms}
    told = False
    for source in dict.fromkeys((*before, *after)):
        numbers = before.get(source), after.get(source)
        if numbers[0] != numbers[1]:
            told = True
            yield f"{source}: {_number(numbers[0])} → {_number(numbers[1])}"
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        yield f"{old.dtype} {list(old.shape)} → {new.dtype} {list(new.shape)}"
    if not told and old.formula != new.formula:
        yield f"{old.formula} → {new.formula}"
    elif not told and old.kind != new.kind:
        yield f"{old.kind} → {new.kind}"


def _number(value: float | None) -> str:
    return "no delta" if value is None else f"{value:.6g}"


def _models(
    old: Mapping[str, tuple[str, str]], new: Mapping[str, tuple[str, str]]
) -> Iterator[str]:
    for role in dict.fromkeys((*old, *new)):
        before, after = old.get(role), new.get(role)
        what = "mask" if role.startswith("mask ") else role
        if before is not None and after is not None and before[1] == after[1]:
            continue
        if before is not None and after is not None and before[0] == after[0]:
            yield f"{what}: {before[0]} ({before[1]} → {after[1]})"
        else:
            names = [each[0] if each is not None else "none" for each in (before, after)]
            yield f"{what}: {' → '.join(names)}"


def _settings(old: Plan, new: Plan) -> Iterator[str]:
    before, after = dict(_flat(old.identity_document)), dict(_flat(new.identity_document))
    before["name"], after["name"] = old.name, new.name
    for key in dict.fromkeys((*before, *after)):
        if before.get(key) != after.get(key) and key not in _TOLD_ELSEWHERE:
            yield f"{key}: {before.get(key, 'the default')} → {after.get(key, 'the default')}"


def _flat(document: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict) and before + key not in _TOLD_ELSEWHERE:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, value
