"""The keys that choose tensors, wherever a plan has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from mergeengine.plan.document import Node
from mergeengine.plan.forms import (
    LINE,
    Keys,
    Line,
    NotExpected,
    checked,
    one_or_list,
    one_or_many,
    written_keys,
)
from mergeengine.plan.problems import Problems
from mergeengine.values.excerpts import excerpt
from mergeengine.values.nearest import did_you_mean
from mergeengine.values.selectors import (
    LAYERS_EXPECTED,
    SIDES,
    Beyond,
    LayerRange,
    Selector,
    compile_regex,
)


def layers_of(value: Any) -> LayerRange:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise NotExpected(LAYERS_EXPECTED)
    return LayerRange.parse(value)


def _span_of(value: Any) -> LayerRange:
    """As `layers_of`, but neither ``even`` nor ``odd``, between whose ends others lie."""
    found = layers_of(value)
    if found.step != 1:
        raise NotExpected("expected layers such as 0-3, 28- or -4--1")
    return found


_Many = (BeforeValidator(one_or_many), Field(min_length=1))
_ONE = {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^\s*[-0-9eo]"}]}
LAYERS = {"anyOf": [_ONE, {"type": "array", "items": _ONE, "minItems": 1}]}
Layers = Annotated[
    list[Annotated[LayerRange, PlainValidator(layers_of)]], *_Many, WithJsonSchema(LAYERS)
]
Span = Annotated[
    LayerRange,
    PlainValidator(_span_of),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^\s*-?[0-9]"}]}),
]
Lines = Annotated[list[Line], *_Many, one_or_list(LINE)]
Regexes = Annotated[list[Annotated[Line, checked(compile_regex)]], *_Many, one_or_list(LINE)]


def _place_of(value: Any) -> LayerRange | Beyond:
    """Layers, or a side of all of them."""
    return next((Beyond(side) for side in SIDES if value == side), None) or layers_of(value)


_PLACE = {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^\s*[-0-9eoab]"}]}
Places = Annotated[
    list[Annotated[LayerRange | Beyond, PlainValidator(_place_of)]], *_Many, one_or_list(_PLACE)
]


_NAMES = ["layers", "match", "regex", "kind", "selection", "all", "any", "not"]
_INSIDE = {"type": "object", "propertyNames": {"enum": _NAMES}}


class SelectorKeys(Keys):
    layers: Places | None = None
    match: Lines | None = None
    regex: Regexes | None = None
    kind: Lines | None = None
    selection: Lines | None = None
    every: Selectors | None = Field(None, alias="all")
    some: Selectors | None = Field(None, alias="any")
    none: Selectors | None = Field(None, alias="not")


Selectors = Annotated[list[SelectorKeys], *_Many, one_or_list(_INSIDE)]
SelectorKeys.model_rebuild()

SELECTING = frozenset(written_keys(SelectorKeys))
"""The keys that choose tensors."""


def check_selections(root: Node, problems: Problems) -> None:
    """Every selection that the plan names exists, and none contains itself."""
    named = root.get("selections")
    known = named.value if named is not None and isinstance(named.value, dict) else {}
    inside: dict[str, list[Node]] = {name: _names_in(node) for name, node in known.items()}
    for each in _names_in(root):
        if isinstance(each.value, str) and each.value not in known:
            hint = did_you_mean(each.value, known)
            if not hint:
                have = ", ".join(f"`{name}`" for name in known)
                hint = f"; the plan's are {have}" if have else "; the plan has no `selections`"
            problems.add(each.position, f"there is no selection `{excerpt(each.value)}`{hint}")
    for name in known:
        for within in inside[name]:
            if _reaches(str(within.value), name, inside):
                problems.add(within.position, f"the selection `{excerpt(name)}` contains itself")
                return


def _names_in(root: Node) -> list[Node]:
    """Where selections are named."""
    found: list[Node] = []
    for path, node in root.walk():
        if path[-1:] == ("selection",):
            found += node.value if isinstance(node.value, list) else [node]
    return found


def _reaches(start: str, name: str, inside: Mapping[str, list[Node]]) -> bool:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        each = waiting.pop()
        if each == name:
            return True
        if each not in seen:
            seen.add(each)
            waiting += [str(node.value) for node in inside.get(each, [])]
    return False


class Selections:
    """The plan's named selections; what they name in turn exists, and not themselves."""

    def __init__(self, named: Mapping[str, SelectorKeys]) -> None:
        self._named = named

    def selector(self, keys: SelectorKeys) -> Selector:
        """The selector of keys that have passed the checks."""
        named = keys.selection
        return Selector(
            layers=None if keys.layers is None else tuple(keys.layers),
            match=None if keys.match is None else tuple(keys.match),
            regex=None if keys.regex is None else tuple(keys.regex),
            kind=None if keys.kind is None else tuple(keys.kind),
            selection=None
            if named is None
            else tuple((name, self.selector(self._named[name])) for name in named),
            every=self._all(keys.every),
            some=self._all(keys.some),
            none=self._all(keys.none),
        )

    def _all(self, keys: Iterable[SelectorKeys] | None) -> tuple[Selector, ...] | None:
        return None if keys is None else tuple(map(self.selector, keys))
