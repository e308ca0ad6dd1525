"""A parameter as a configuration gives it, and as a plan does.

mergekit looks for it in the input, the slice, the module and the whole, in this order. Each of
these gives a value, a gradient (a list of values), or a list of both with filters, of which the
first that occurs in the tensor's name counts; where none does, the next place is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mergeengine.mergekit.models import check_keys
from mergeengine.mergekit.nodes import mapping, number, one_or_list, scalar, sequence
from mergeengine.plan.document import Node
from mergeengine.plan.problems import Problems
from mergeengine.values.excerpts import excerpt
from mergeengine.values.nearest import nearest
from mergeengine.values.positions import Position
from mergeengine.values.selectors import spans

_GLOB = re.compile(r"[*?\[\]]")
# YAML 1.1, which mergekit reads, has these for true and false.
_WORDS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}

Layers = tuple[int, int]
"""The first layer and the last."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The values for tensors whose names contain ``part`` (None: all); one value is no gradient."""

    part: str | None
    points: tuple[float, ...]
    position: Position

    @property
    def says(self) -> tuple[str | None, tuple[float, ...]]:
        return self.part, self.points

    @property
    def is_gradient(self) -> bool:
        return len(self.points) > 1


Setting = tuple[Entry, ...]
"""The first that matches counts; the last one matches all."""


def constant(value: float, at: Position) -> Setting:
    return (Entry(None, (value,), at),)


def resolve(places: Iterable[Node | None], problems: Problems) -> tuple[Entry, ...]:
    """What the places say together, the first of them before the others, up to what is for all
    tensors. Nothing, or nothing for all, where no place says it."""
    found: list[Entry] = []
    for place in places:
        for entry in () if place is None or place.value is None else _entries(place, problems):
            if entry.part not in [each.part for each in found]:
                found.append(entry)
            if entry.part is None:
                return _shortened(found)
    return tuple(found)


def _shortened(entries: list[Entry]) -> Setting:
    """Without what says in the end what the last says for all."""
    *before, last = entries
    while before and before[-1].points == last.points:
        before.pop()
    return (*before, last)


def _entries(node: Node, problems: Problems) -> list[Entry]:
    listed = node.value if isinstance(node.value, list) else [node]
    if not any(isinstance(each.value, dict) for each in listed):
        return [Entry(None, _points(node, problems), node.position)]
    entries = []
    for each in listed:
        if not isinstance(each.value, dict):
            message = f"expected {{filter: ..., value: ...}}, found {each.described}"
            problems.add(each.position, message)
            continue
        check_keys(each, ("filter", "value"), problems)
        value, part = each.get("value"), each.get("filter")
        if value is None:
            if not nearest("value", each.keys):
                problems.add(each.position, "`value` is missing")
            entries.append(Entry(None, (0.0,), each.position))
        elif part is None or part.value in (None, "*", ""):
            entries.append(Entry(None, _points(value, problems), each.position))
        else:
            entries.append(Entry(part.written, _points(value, problems), each.position))
    return entries


def _points(node: Node, problems: Problems) -> tuple[float, ...]:
    if not isinstance(node.value, list):
        return (_number(node, problems),)
    if not node.value:
        problems.add(node.position, "expected at least one value, found an empty list")
    found = tuple(_number(each, problems) for each in node.value) or (0.0,)
    return found if len(set(found)) > 1 else found[:1]


def _number(node: Node, problems: Problems) -> float:
    """Numbers in quotes are numbers too."""
    if isinstance(node.value, int | float | str):
        try:
            found = float(node.value)
        except ValueError:
            found = float(_WORDS.get(str(node.value).lower(), float("nan")))
        if found - found == 0:  # finite
            return found
    what = "a finite number" if isinstance(node.value, float) else "a number"
    problems.add(node.position, f"expected {what}, found {node.described}")
    return 0.0


# --- as a plan has it ------------------------------------------------------------------------


def form(settings: Sequence[Setting], layers: Sequence[Layers]) -> Node:
    """The value in a plan, of what is said for each slice; ``layers`` are the slices' in the
    output."""
    first = [entry.says for entry in settings[0]]
    if all([entry.says for entry in each] == first for each in settings) and (
        len(layers) < 2 or not any(entry.is_gradient for entry in settings[0])
    ):
        return _rules(settings[0])
    if all(len(each) == 1 and not each[0].is_gradient for each in settings):
        return _by_layers(settings, layers)
    return _by_slices(settings, layers)


def _rules(setting: Setting) -> Node:
    *before, last = setting
    value = _value(last)
    if not before:
        return value
    rules = [_rule(parts, entry, _value(entry)) for parts, entry in _joined(before)]
    return sequence([*rules, mapping({"value": value}, last.position)], last.position)


def _joined(entries: Iterable[Entry]) -> list[tuple[list[str], Entry]]:
    """Filters that follow each other and say the same, together."""
    joined: list[tuple[list[str], Entry]] = []
    for entry in entries:
        assert entry.part is not None
        if joined and joined[-1][1].points == entry.points:
            joined[-1][0].append(entry.part)
        else:
            joined.append(([entry.part], entry))
    return joined


def _rule(parts: list[str], entry: Entry, value: Node, where: Node | None = None) -> Node:
    at = entry.position
    names: dict[str, Node | None] = {"match": None, "regex": None}
    if any(_GLOB.search(part) for part in parts):
        names["regex"] = one_or_list([scalar(re.escape(part), at) for part in parts], at)
    elif parts:
        names["match"] = one_or_list([scalar(f"*{part}*", at) for part in parts], at)
    return mapping({"layers": where, **names, "value": value}, at)


def _value(entry: Entry, over: Layers | None = None, ends: bool = True) -> Node:
    """A number or a schedule; ``ends``: also for what follows the layers, which mergekit gives the
    first value."""
    at, points = entry.position, entry.points
    if not entry.is_gradient:
        return number(points[0], at)
    listed = sequence([number(each, at) for each in points], at)
    after = number(points[0], at) if ends and points[0] != points[-1] else None
    if over is None and after is None:
        return listed
    return mapping(
        {
            "points": listed,
            "over": None if over is None else layers_node(over, at),
            "outside": None if after is None else mapping({"after": after}, at),
        },
        at,
    )


def layers_node(layers: Layers, at: Position) -> Node:
    first, last = layers
    return scalar(first, at) if first == last else scalar(f"{first}-{last}", at)


def _by_layers(settings: Sequence[Setting], layers: Sequence[Layers]) -> Node:
    """A number for each slice: the first's also for what stands before, the last's for what
    follows."""
    at = settings[0][0].position
    joined: list[tuple[int, int, Entry]] = []
    for (entry,), (first, last) in zip(settings, layers, strict=True):
        if joined and joined[-1][2].points == entry.points:
            joined[-1] = (joined[-1][0], last, joined[-1][2])
        else:
            joined.append((first, last, entry))
    entries = {
        str(layers_node((first, last), at).value): number(entry.points[0], entry.position)
        for first, last, entry in joined
    }
    return mapping({"layers": mapping(entries, at)}, at)


def _by_slices(settings: Sequence[Setting], layers: Sequence[Layers]) -> Node:
    """Rules for the layers of each slice; slices that say the same share them."""
    end = len(settings) - 1
    finals = [each[-1].points for each in settings if not each[-1].is_gradient]
    most = max(finals, key=finals.count) if finals else settings[end][-1].points
    alike: dict[tuple[object, ...], list[int]] = {}
    for index, each in enumerate(settings):
        gradient = any(entry.is_gradient for entry in each)
        key = (index if gradient else -1, *(entry.says for entry in each))
        alike.setdefault(key, []).append(index)
    rules: list[Node] = []
    for indices in alike.values():
        index = indices[0]
        *before, last = settings[index]
        where = _where([layers[each] for each in indices], 0 in indices, end in indices, last)
        over, ends = layers[index], index == end
        for parts, entry in _joined(before):
            rules.append(_rule(parts, entry, _value(entry, over, ends), where))
        if last.points != most or (ends is False and not finals):
            rules.append(_rule([], last, _value(last, over, ends), where))
    at = settings[end][-1].position
    closing = Entry(None, most, at)
    value = _value(closing, None if finals else layers[end])
    return sequence([*rules, mapping({"value": value}, at)], at)


def _where(layers: list[Layers], before: bool, after: bool, of: Entry) -> Node:
    numbers = sorted(each for first, last in layers for each in range(first, last + 1))
    at = of.position
    texts = [scalar(int(text) if text.isdecimal() else text, at) for text in spans(numbers)]
    if before:
        texts.insert(0, scalar("before", at))
    if after:
        texts.append(scalar("after", at))
    return one_or_list(texts, at)


# --- flags -----------------------------------------------------------------------------------


def flag(places: Iterable[Node | None], default: bool, problems: Problems) -> Node | bool:
    """What the first place says of true or false: its node, or the default."""
    for place in places:
        if place is None or place.value is None:
            continue
        value = place.value
        if isinstance(value, str):
            value = _WORDS.get(value.lower(), value)
        if value in (0, 1) and not isinstance(value, list | dict):
            return scalar(bool(value), place.position)
        if isinstance(value, list | dict):
            message = "filters and gradients of true and false are not supported: expected one"
        else:
            message = f"expected true or false, found {place.described}"
        problems.add(place.position, message)
        return default
    return default


def numbered(setting: Setting) -> str | None:
    """A filter with a layer's number; None where there is none."""
    parts = (entry.part for entry in setting if entry.part is not None)
    found = next((part for part in parts if re.search(r"(?:^|\.)[0-9]+(?:\.|$)", part)), None)
    return None if found is None else excerpt(found)
