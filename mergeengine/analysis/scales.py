"""How strongly each delta is applied, as a table: layers by kinds of module."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mergeengine.analysis.explain import Explanation
from mergeengine.values.anatomy import layer_of
from mergeengine.values.kinds import module_of
from mergeengine.values.selectors import spans

NOTHING = "·"  # a module without a delta


@dataclass(frozen=True, slots=True)
class Scales:
    """One delta's coefficients: least and greatest for each layer and kind of module.

    The kind of a tensor is the name of its module, as selectors have it: ``q_proj``,
    ``input_layernorm``. `outside` are those that lie in no layer.
    """

    source: str
    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    values: dict[tuple[int, str], tuple[float, float]]
    outside: dict[str, tuple[float, float]]


def scales(explanations: Iterable[Explanation]) -> tuple[Scales, ...]:
    """A table for each source, in the order of the plan."""
    every = list(explanations)
    sources = dict.fromkeys(term.source for each in every for term in each.terms)
    return tuple(_of_source(source, every) for source in sources)


def rows(table: Scales) -> list[tuple[str, ...]]:
    """The table as texts, headings first; neighbouring layers that are alike share a row."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for layer in table.layers:
        cells = tuple(_cell(table.values.get((layer, kind))) for kind in table.kinds)
        alike.setdefault(cells, []).append(layer)
    found = [(",".join(spans(layers)), *cells) for cells, layers in alike.items()]
    outside = [(kind, _cell(value)) for kind, value in table.outside.items()]
    return [("layers", *table.kinds), *found] if found else [("tensor", "scale"), *outside]


def outside_text(table: Scales) -> str:
    """Those in no layer, on one line; empty where there are none."""
    return ", ".join(f"{kind} {_cell(value)}" for kind, value in table.outside.items())


def _of_source(source: str, explanations: list[Explanation]) -> Scales:
    found: dict[tuple[int | None, str], list[float]] = {}
    for each in explanations:
        for term in each.terms:
            if term.source == source:
                place = layer_of(each.name), module_of(each.name) or each.name
                found.setdefault(place, []).append(term.coefficient)
    ends = {place: (min(numbers), max(numbers)) for place, numbers in found.items()}
    inside = {(layer, kind): v for (layer, kind), v in ends.items() if layer is not None}
    return Scales(
        source=source,
        kinds=tuple(dict.fromkeys(kind for _, kind in inside)),
        layers=tuple(sorted({layer for layer, _ in inside})),
        values=inside,
        outside={kind: value for (layer, kind), value in ends.items() if layer is None},
    )


def _cell(value: tuple[float, float] | None) -> str:
    if value is None:
        return NOTHING
    least, greatest = (f"{number:.4g}" for number in value)
    return least if least == greatest else f"{least}..{greatest}"
