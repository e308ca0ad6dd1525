"""The keys of numbers that may differ from tensor to tensor, and what they become."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, PlainValidator, TypeAdapter, WithJsonSchema

from mergeengine.plan.document import Node, Path
from mergeengine.plan.forms import Keys, NotExpected, Number, checked
from mergeengine.plan.selecting import SELECTING, Selections, SelectorKeys, Span
from mergeengine.values import parameters as values
from mergeengine.values.choices import Choice
from mergeengine.values.decisions import number_text
from mergeengine.values.parameters import Curve
from mergeengine.values.references import check_printable
from mergeengine.values.scaling import Scaling, ScalingRule
from mergeengine.values.selectors import LayerRange


class OutsideKeys(Keys):
    before: Number | None = None
    after: Number | None = None


class OverDepthKeys(Keys):
    over: Span | None = None
    outside: OutsideKeys = OutsideKeys()


class PointsKeys(OverDepthKeys):
    points: Annotated[list[Number], Field(min_length=1)]
    curve: Curve = "linear"


class CurveKeys(OverDepthKeys):
    start: Number = Field(alias="from")
    end: Number = Field(alias="to")
    curve: Curve = "linear"


class ShallowDeepKeys(OverDepthKeys):
    shallow: Number
    deep: Number


def spans_of(written: str) -> tuple[LayerRange, ...]:
    """``0-3, 6``: the ranges of a key of `layers`."""
    return tuple(LayerRange.parse(part) for part in written.split(","))


SpanText = Annotated[str, checked(spans_of)]


class LayersKeys(Keys):
    layers: Annotated[dict[SpanText, Number], Field(min_length=1)]
    default: Number | None = None
    outside: OutsideKeys = OutsideKeys()


Written = float | list[Any] | Keys
"""A parameter that has passed the checks: a number, points, rules or one of the keys above."""


class MeasuredKeys(Keys):
    """A scaling that is computed from the tensors' norms; `value` is the factor that is bounded."""

    ratio: Varying | None = None
    at_most: Bound | None = None
    value: Varying | None = None


# By which keys a mapping is known; the first that it has decides.
_FORMS: dict[str, type[Keys]] = {
    "ratio": MeasuredKeys,
    "at_most": MeasuredKeys,
    "layers": LayersKeys,
    "points": PointsKeys,
    "from": CurveKeys,
    "to": CurveKeys,
    "shallow": ShallowDeepKeys,
    "deep": ShallowDeepKeys,
}
FORMS_EXPECTED = (
    "expected a number, or a mapping with `layers`, `points`, `from` and `to`, "
    "or `shallow` and `deep`"
)


def form_of(value: Any) -> type[Keys] | None:
    """The keys that a mapping or an entry of a list is to have; None where none fit."""
    if isinstance(value, list):
        return RuleKeys
    return next((_FORMS[key] for key in _FORMS if key in value), None)


def _simple(value: Any) -> Written:
    if isinstance(value, dict):
        keys = form_of(value)
        if keys is MeasuredKeys:
            raise ValueError(
                "`ratio` and `at_most` stand under `scaling` or in its rules, and nowhere else"
            )
        if keys is None:
            raise NotExpected(FORMS_EXPECTED)
        return keys.model_validate(value)
    if isinstance(value, list):
        return _POINTS.validate_python(value)
    return _NUMBER.validate_python(value)


def _any(value: Any) -> Written:
    return _rules(value, _RULES) if _has_rules(value) else _simple(value)


def _has_rules(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(entry, dict) for entry in value)


def _rules(value: list[Any], kind: TypeAdapter[Any]) -> list[Any]:
    rules: list[Any] = kind.validate_python(value)
    if not SELECTING.isdisjoint(value[-1]):
        raise ValueError(
            "the last rule must be `{value: ...}` without a selector, for all other tensors"
        )
    return rules


def _bound(value: Any) -> Written:
    found = _any(value)
    if any(number < 0 for number in _numbers(value)):
        raise ValueError("a norm has no bound below 0")
    return found


def _numbers(value: Any) -> Iterator[float]:
    """The numbers of a parameter as it is written; those of selectors are none of it."""
    if isinstance(value, dict):
        inside = [value["value"]] if "value" in value else value.values()
    else:
        inside = value if isinstance(value, list) else []
    for each in inside:
        yield from _numbers(each)
    if isinstance(value, int | float):
        yield value


_WORDS = [
    *("layers", "default", "points", "curve", "from", "to", "shallow", "deep", "over", "outside"),
    *("ratio", "at_most", "value"),
]
_WRITTEN = {
    "anyOf": [
        {"type": "number"},
        {"type": "array", "minItems": 1},
        {"type": "object", "minProperties": 1, "propertyNames": {"enum": _WORDS}},
    ]
}
Simple = Annotated[Written, PlainValidator(_simple), WithJsonSchema(_WRITTEN)]
Bound = Annotated[Written, PlainValidator(_bound), WithJsonSchema(_WRITTEN)]
Varying = Annotated[Written, PlainValidator(_any), WithJsonSchema(_WRITTEN)]


def _option(value: Any) -> Written | bool | str:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        check_printable(value)
        return value
    try:
        return _any(value)
    except NotExpected as error:
        expected = f"{error}, true, false or a word" if str(error) == FORMS_EXPECTED else str(error)
        raise NotExpected(expected, error.hint) from None


_OPTION = {"anyOf": [{"type": "boolean"}, {"type": "string"}, *_WRITTEN["anyOf"]]}
Option = Annotated[Written | bool | str, PlainValidator(_option), WithJsonSchema(_OPTION)]
"""A parameter of a method; which ones there are, and what each may be, its method knows."""


class RuleKeys(SelectorKeys):
    value: Simple


def _scaling(value: Any) -> Written:
    if isinstance(value, dict):
        return _measured(value, _any)
    return _rules(value, _SCALING_RULES) if _has_rules(value) else _simple(value)


def _of_rule(value: Any) -> Written:
    return _measured(value, _simple) if isinstance(value, dict) else _simple(value)


def _measured(value: dict[str, Any], other: Callable[[Any], Written]) -> Written:
    if form_of(value) is None:
        raise NotExpected(f"{FORMS_EXPECTED}, or `ratio` or `at_most`")
    if form_of(value) is not MeasuredKeys:
        return other(value)
    measured = MeasuredKeys.model_validate(value)
    if measured.ratio is not None:
        for key in ("at_most", "value"):
            if getattr(measured, key) is not None:
                raise ValueError(f"`{key}` cannot stand beside `ratio`, which decides the norm")
    return measured


class ScalingRuleKeys(RuleKeys):
    value: Annotated[Written, PlainValidator(_of_rule), WithJsonSchema(_WRITTEN)]


Scaled = Annotated[Written, PlainValidator(_scaling), WithJsonSchema(_WRITTEN)]
MeasuredKeys.model_rebuild()


_NUMBER: TypeAdapter[float] = TypeAdapter(Number, config={"strict": True})
_POINTS: TypeAdapter[list[float]] = TypeAdapter(
    Annotated[list[Number], Field(min_length=1)], config={"strict": True}
)
_RULES: TypeAdapter[list[RuleKeys]] = TypeAdapter(list[RuleKeys])
_SCALING_RULES: TypeAdapter[list[ScalingRuleKeys]] = TypeAdapter(list[ScalingRuleKeys])


def parameter(
    key: str, written: Any, root: Node, path: Path, selections: Selections
) -> values.Parameter:
    """The parameter `key`; where nothing stands at `path`, `written` is its default."""
    node = root.at(path[:-1]).get(str(path[-1]))
    position = None if node is None else node.position
    return values.Parameter(key, form(written, root, path, selections), position)


def options(
    written: Mapping[str, Any], root: Node, path: Path, selections: Selections
) -> dict[str, values.Parameter | Choice]:
    """What checked parameters of a method become; keys in the order in which they are written."""
    return {
        key: Choice(key, value, root.at((*path, key)).position)
        if isinstance(value, bool | str)
        else parameter(key, value, root, (*path, key), selections)
        for key, value in written.items()
    }


def scaling(
    written: Any, root: Node, path: Path, selections: Selections, key: str = "scaling"
) -> Scaling:
    """What a checked `scaling` at `path` becomes; `key` is what it is called there."""

    def inner(key: str, value: Any) -> values.Parameter:
        return parameter(key, value, root, (*path, key), selections)

    if isinstance(written, list) and any(_is_measured(entry) for entry in written):
        return Scaling(
            rules=tuple(
                ScalingRule(
                    selections.selector(rule),
                    scaling(rule.value, root, (*path, index, "value"), selections, "value"),
                    root.at((*path, index)).position,
                )
                for index, rule in enumerate(written)
            )
        )
    if not isinstance(written, MeasuredKeys):
        return Scaling(parameter(key, written, root, path, selections))
    if written.ratio is not None:
        return Scaling(inner("ratio", written.ratio), "ratio")
    factor = 1.0 if written.value is None else written.value
    return Scaling(inner("value", factor), "factor", inner("at_most", written.at_most))


def _is_measured(entry: Any) -> bool:
    return isinstance(entry, RuleKeys) and isinstance(entry.value, MeasuredKeys)


def form(written: Any, root: Node, path: Path, selections: Selections) -> values.Form:
    """What a checked value at `path` becomes."""
    if isinstance(written, list) and written and isinstance(written[0], RuleKeys):
        return values.Rules(
            tuple(
                values.ParameterRule(
                    selections.selector(rule),
                    _simple_form(rule.value, root, (*path, index, "value")),
                    root.at((*path, index)).position,
                )
                for index, rule in enumerate(written)
            )
        )
    return _simple_form(written, root, path)


def _simple_form(written: Any, root: Node, path: Path) -> values.Simple:
    match written:
        case list():
            return values.Schedule(tuple(written))
        case PointsKeys():
            points = ", ".join(map(number_text, written.points))
            return _schedule(written, (*written.points,), written.curve, f"points: [{points}]")
        case CurveKeys():
            ends = f"from: {number_text(written.start)}, to: {number_text(written.end)}"
            return _schedule(written, (written.start, written.end), written.curve, ends)
        case ShallowDeepKeys():
            ends = f"shallow: {number_text(written.shallow)}, deep: {number_text(written.deep)}"
            return _schedule(written, (written.shallow, written.deep), "linear", ends)
        case LayersKeys():
            entries = root.at((*path, "layers"))
            return values.LayerMap(
                tuple(
                    values.LayerValue(spans_of(key), value, entries.keys.get(key))
                    for key, value in written.layers.items()
                ),
                written.default,
                _outside(written.outside),
            )
        case _:
            return values.Number(float(written))


def _schedule(
    keys: OverDepthKeys, points: tuple[float, ...], curve: Curve, words: str
) -> values.Schedule:
    outside = _outside(keys.outside)
    words += "" if curve == "linear" else f", curve: {curve}"
    words += "" if keys.over is None else f", over: {keys.over}"
    return values.Schedule(points, curve, outside, f"{{{words}{outside.text}}}", keys.over)


def _outside(keys: OutsideKeys) -> values.Outside:
    return values.Outside(keys.before, keys.after)
