"""Numbers that may differ from tensor to tensor: constants, schedules over depth, maps, rules.

Every numeric parameter of a plan is one of these forms. Resolved for a tensor, each gives the
number, what the plan says there, and where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import cos, pi, sqrt
from typing import Literal

from mergeengine.values.anatomy import Anatomy, TensorFacts
from mergeengine.values.decisions import Decision, number_text
from mergeengine.values.positions import Position
from mergeengine.values.selectors import LayerRange, Rule, Selector, first_match, spans

Curve = Literal["linear", "cosine", "quadratic", "sqrt"]

# How far the way from the first value to the last has been gone at a depth: 0 at 0 and 1 at 1.
CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda depth: depth,
    "cosine": lambda depth: (1 - cos(pi * depth)) / 2,  # slow at both ends
    "quadratic": lambda depth: depth * depth,  # slow at first
    "sqrt": sqrt,  # fast at first
}


@dataclass(frozen=True, slots=True)
class Outside:
    """What tensors outside the layers get: those `before` and those `after` them.

    None: as the first layer, and as the last.
    """

    before: float | None = None
    after: float | None = None

    def decision(self, tensor: TensorFacts, key: str, position: Position | None) -> Decision | None:
        """The decision for a tensor outside the layers, where it is not that of a layer."""
        if tensor.layer is not None:
            return None
        side, value = ("before", self.before) if tensor.stands_before else ("after", self.after)
        if value is None:
            return None
        return Decision(value, position, f"{key}: {number_text(value)} {side} the layers")

    @property
    def text(self) -> str:
        given = (("before", self.before), ("after", self.after))
        inner = ", ".join(
            f"{key}: {number_text(value)}" for key, value in given if value is not None
        )
        return f", outside: {{{inner}}}" if inner else ""


@dataclass(frozen=True, slots=True)
class Number:
    """The same for every tensor."""

    value: float

    def at(self, tensor: TensorFacts, key: str, position: Position | None) -> Decision:
        return Decision(self.value, position, f"{key}: {number_text(self.value)}")

    @property
    def text(self) -> str:
        return number_text(self.value)

    def lists(self) -> Iterator[Sequence[Rule]]:
        return iter(())

    def uncovered(self, anatomy: Anatomy) -> Iterator[str]:
        return iter(())


@dataclass(frozen=True, slots=True)
class Schedule:
    """A function of depth through `points`, the first at depth 0, the last at depth 1.

    Between two points the value goes along `curve`. What stands before the layers has depth 0,
    what follows them depth 1, unless `outside` says otherwise. With `over` depth is counted in
    these layers alone: 0 at the first and before it, 1 at the last and after it; a single one has
    depth 1. `words` are those of the plan.

    With two points on a line it is the schedule of LiNeS: Wang et al. 2024, "LiNeS:
    Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging"
    (arXiv:2410.17146), which scales layer l of L by α + β (l − 1) / (L − 1).
    """

    points: tuple[float, ...]
    curve: Curve = "linear"
    outside: Outside = field(default_factory=Outside)
    words: str = ""
    over: LayerRange | None = None

    def value(self, depth: float) -> float:
        way = depth * (len(self.points) - 1)
        before = min(int(way), max(0, len(self.points) - 2))
        first, last = self.points[before], self.points[min(before + 1, len(self.points) - 1)]
        gone = CURVES[self.curve](way - before)
        # Exact at both ends, and where they are equal.
        return first if first == last else (1 - gone) * first + gone * last

    def at(self, tensor: TensorFacts, key: str, position: Position | None) -> Decision:
        outside = self.outside.decision(tensor, key, position)
        if outside is not None:
            return outside
        depth = self._depth(tensor)
        text = f"{key}: {self.text} at depth {depth:.3g}"
        return Decision(self.value(depth), position, text)

    def _depth(self, tensor: TensorFacts) -> float:
        if self.over is None or tensor.layer is None:
            return tensor.depth
        first, last = self.over.ends(tensor.layers)
        if first >= last:
            return float(tensor.layer >= last)
        return min(1.0, max(0.0, (tensor.layer - first) / (last - first)))

    @property
    def text(self) -> str:
        if self.words:
            return self.words
        return f"[{', '.join(map(number_text, self.points))}]"

    def lists(self) -> Iterator[Sequence[Rule]]:
        return iter(())

    def uncovered(self, anatomy: Anatomy) -> Iterator[str]:
        return iter(())


@dataclass(frozen=True, slots=True)
class LayerValue:
    """The value of the layers in one of the ranges."""

    layers: tuple[LayerRange, ...]
    value: float
    position: Position | None = field(default=None, compare=False)

    def holds(self, layer: int, layers: int) -> bool:
        return any(span.holds(layer, layers) for span in self.layers)

    @property
    def selector(self) -> Selector:
        return Selector(layers=self.layers)

    @property
    def text(self) -> str:
        return f"{', '.join(map(str, self.layers))}: {number_text(self.value)}"


@dataclass(frozen=True, slots=True)
class LayerMap:
    """A value for each layer: of the entries that hold a layer, the first.

    `default` is for every tensor that no entry names, those outside the layers among them.
    Without it the entries name every layer, and what stands before and after the layers gets what
    the first and the last of them get, of the stack that is named first, unless `outside` says
    otherwise.
    """

    entries: tuple[LayerValue, ...]
    default: float | None = None
    outside: Outside = field(default_factory=Outside)

    def at(self, tensor: TensorFacts, key: str, position: Position | None) -> Decision:
        outside = self.outside.decision(tensor, key, position)
        if outside is not None:
            return outside
        layer, layers = tensor.layer, tensor.layers
        if layer is None and self.default is None:
            layers = next(iter(tensor.anatomy.stacks.values()), 0)
            layer = 0 if tensor.stands_before else layers - 1
        if layer is not None:
            for entry in self.entries:
                if entry.holds(layer, layers):
                    beside = f" as layer {layer}" if tensor.layer is None else ""
                    return Decision(
                        entry.value, entry.position, f"{key}: layers {entry.text}{beside}"
                    )
        if self.default is None:
            raise ValueError(f"{tensor.name} is in no layer of {self.text}")
        return Decision(self.default, position, f"{key}: default: {number_text(self.default)}")

    @property
    def text(self) -> str:
        default = "" if self.default is None else f", default: {number_text(self.default)}"
        entries = ", ".join(entry.text for entry in self.entries)
        return f"{{layers: {{{entries}}}{default}{self.outside.text}}}"

    def lists(self) -> Iterator[Sequence[Rule]]:
        yield self.entries

    def uncovered(self, anatomy: Anatomy) -> Iterator[str]:
        """The layers that no entry names, where there is no default."""
        if self.default is not None:
            return
        for prefix, layers in anatomy.stacks.items():
            missing = [
                layer
                for layer in range(layers)
                if not any(entry.holds(layer, layers) for entry in self.entries)
            ]
            if missing:
                several = f" of {prefix.rstrip('.')}" if len(anatomy.stacks) > 1 else ""
                yield f"{', '.join(spans(missing))}{several}"
        if not anatomy.stacks:
            yield "none are there"


@dataclass(frozen=True, slots=True)
class ParameterRule:
    """The value of the tensors of one selector."""

    selector: Selector
    value: Number | Schedule | LayerMap
    position: Position | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Rules:
    """The first rule that matches decides; the last one has no selector and matches all."""

    rules: tuple[ParameterRule, ...]

    def at(self, tensor: TensorFacts, key: str, position: Position | None) -> Decision:
        rule = first_match(self.rules, tensor)
        assert rule is not None
        inner = rule.value.at(tensor, "value", rule.position)
        return Decision(inner.value, inner.position, f"{rule.selector.whom}, {inner.text}")

    @property
    def text(self) -> str:
        return f"{len(self.rules)} rules"

    def lists(self) -> Iterator[Sequence[Rule]]:
        yield self.rules
        for rule in self.rules:
            yield from rule.value.lists()

    def uncovered(self, anatomy: Anatomy) -> Iterator[str]:
        for rule in self.rules:
            yield from rule.value.uncovered(anatomy)


Simple = Number | Schedule | LayerMap
Form = Simple | Rules


def numbers_in(form: Form) -> Iterator[float]:
    """Every number of a form, those for what stands outside the layers among them."""
    match form:
        case Number():
            yield form.value
        case Rules():
            for rule in form.rules:
                yield from numbers_in(rule.value)
            return
        case Schedule():
            yield from form.points
        case LayerMap():
            yield from (entry.value for entry in form.entries)
            if form.default is not None:
                yield form.default
    if not isinstance(form, Number):
        ends = form.outside.before, form.outside.after
        yield from (each for each in ends if each is not None)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A numeric parameter of a plan: the key it stands under, its form, and where it is written."""

    key: str
    form: Form
    position: Position | None = field(default=None, compare=False)

    def at(self, tensor: TensorFacts) -> Decision:
        """The number for a tensor, what the plan says, and where; no position: a default."""
        if self.position is None and isinstance(self.form, Number):
            return Decision(self.form.value)
        return self.form.at(tensor, self.key, self.position)

    @property
    def text(self) -> str:
        return f"{self.key}: {self.form.text}"

    def lists(self) -> Iterator[Sequence[Rule]]:
        """Every list of rules inside; of each the first that matches decides."""
        return self.form.lists()

    def numbers(self) -> Iterator[float]:
        """Every number inside; what a tensor gets is one of them or between two."""
        return numbers_in(self.form)

    def problems(self, anatomy: Anatomy) -> Iterator[str]:
        """What keeps the parameter from being resolved for every tensor of a model."""
        for layers in self.form.uncovered(anatomy):
            yield (
                f"{self.position}: `{self.key}` gives no value for layers {layers}; "
                "name them too, or add `default:`"
            )
