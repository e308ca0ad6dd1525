"""Which tensors a line of a plan speaks of: the one home of layers, globs, kinds and the rest."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from typing import Literal, Protocol, TypeVar

from mergeengine.values.anatomy import TensorFacts
from mergeengine.values.excerpts import excerpt
from mergeengine.values.positions import Position

_RANGE = re.compile(r"(-?[0-9]{1,9})(?:\s*(-)\s*(-?[0-9]{1,9})?)?")
_PARITIES = ("even", "odd")

Side = Literal["before", "after"]
SIDES: tuple[Side, ...] = ("before", "after")


@dataclass(frozen=True, slots=True)
class LayerRange:
    """The layers from `first` to `last`, both included; no `last`: to the end.

    A negative number counts from the end of the stack: -1 is its last layer. With a `step` of 2
    every other layer.
    """

    first: int
    last: int | None
    step: int = 1

    @classmethod
    def parse(cls, written: int | str) -> LayerRange:
        """Read ``4``, ``0-3``, ``28-``, ``-1``, ``-4--1``, ``-4-``, ``even`` or ``odd``.

        A minus before the first number belongs to it, so that ``-3`` is the third layer from the
        end; what begins with the first layer says so: ``0-3``. ValueError otherwise.
        """
        text = str(written).strip()
        if text in _PARITIES:
            return cls(_PARITIES.index(text), None, 2)
        found = _RANGE.fullmatch(text)
        if found is None:
            raise ValueError(f"{LAYERS_EXPECTED}, found '{excerpt(str(written))}'")
        first = int(found[1])
        if not found[2]:
            return cls(first, first)
        last = int(found[3]) if found[3] else None
        if last is not None and (last < 0) == (first < 0) and last < first:
            raise ValueError(f"the layers {first}-{last} run downwards; write {last}-{first}")
        return cls(first, last)

    def holds(self, layer: int, layers: int) -> bool:
        """Whether `layer`, one of `layers`, lies in the range."""
        first, last = self.ends(layers)
        return first <= layer <= last and (layer - first) % self.step == 0

    def ends(self, layers: int) -> tuple[int, int]:
        """The first and the last layer of a stack of `layers`; they need not be there."""
        first = self.first + layers if self.first < 0 else self.first
        if self.last is None:
            return first, layers - 1
        return first, self.last + layers if self.last < 0 else self.last

    def __str__(self) -> str:
        if self.step == 2:
            return _PARITIES[self.first]
        if self.first == self.last:
            return str(self.first)
        return f"{self.first}-{'' if self.last is None else self.last}"


@dataclass(frozen=True, slots=True)
class Beyond:
    """What stands ``before`` the layers (embeddings), or ``after`` them (final norm, head)."""

    side: Side

    def __str__(self) -> str:
        return self.side


LAYERS_EXPECTED = "expected layers such as 4, 0-3, 28-, -1, -4--1, even or odd"


def spans(numbers: list[int]) -> Iterator[str]:
    """``[2, 3, 4, 7]`` as ``2-4``, ``7``."""
    start = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[end - 1] + 1:
            first, last = numbers[start], numbers[end - 1]
            yield str(first) if first == last else f"{first}-{last}"
            start = end


@dataclass(frozen=True, slots=True)
class Selector:
    """A choice of tensors; all conditions given must hold, none given selects all.

    Of a condition's several values one must hold: a tensor's layer lies in one of the ranges of
    `layers`, or the tensor stands on a side of all layers that is named there; one of the globs of
    `match` fits the whole name (``*`` crosses dots, case matters), one of `regex` is found in it,
    it is of one of the kinds of `kind`, one of the named selections of `selection` selects it. Of
    `every` all selectors must select it, of `some` at least one, of `none` no one.
    """

    layers: tuple[LayerRange | Beyond, ...] | None = None
    match: tuple[str, ...] | None = None
    regex: tuple[str, ...] | None = None
    kind: tuple[str, ...] | None = None
    selection: tuple[tuple[str, Selector], ...] | None = None
    every: tuple[Selector, ...] | None = None
    some: tuple[Selector, ...] | None = None
    none: tuple[Selector, ...] | None = None

    @property
    def selects_all(self) -> bool:
        return self == _ALL

    def matches(self, tensor: TensorFacts) -> bool:
        if self.layers is not None and not any(_lies_in(each, tensor) for each in self.layers):
            return False
        name = tensor.name
        return (
            (self.match is None or fits(self.match, name))
            and (self.regex is None or any(compile_regex(each).search(name) for each in self.regex))
            and (self.kind is None or not tensor.kinds.isdisjoint(self.kind))
            and (self.selection is None or any(each.matches(tensor) for _, each in self.selection))
            and (self.every is None or all(each.matches(tensor) for each in self.every))
            and (self.some is None or any(each.matches(tensor) for each in self.some))
            and (self.none is None or not any(each.matches(tensor) for each in self.none))
        )

    @property
    def text(self) -> str:
        """As a reader would write it: ``layers: 0-3, match: "*.mlp.*"``."""
        conditions = []
        for key, texts in (
            ("layers", None if self.layers is None else [str(span) for span in self.layers]),
            ("match", None if self.match is None else [f'"{glob}"' for glob in self.match]),
            ("regex", None if self.regex is None else [f'"{each}"' for each in self.regex]),
            ("kind", self.kind),
            ("selection", None if self.selection is None else [n for n, _ in self.selection]),
            ("all", _inner(self.every)),
            ("any", _inner(self.some)),
            ("not", _inner(self.none)),
        ):
            if texts is not None:
                conditions.append(f"{key}: {_one_or_list(list(texts))}")
        return ", ".join(conditions) or "every tensor"

    @property
    def whom(self) -> str:
        """The same for the rule of a list: the last one is for every other tensor."""
        return "every other tensor" if self.selects_all else self.text

    def parts(self) -> Iterator[Selector]:
        """This selector and those inside it, the innermost first."""
        for inner in (self.every, self.some, self.none, [s for _, s in self.selection or ()]):
            for each in inner or ():
                yield from each.parts()
        yield self


_ALL = Selector()


def _lies_in(where: LayerRange | Beyond, tensor: TensorFacts) -> bool:
    layer = tensor.layer
    if isinstance(where, Beyond):
        return layer is None and tensor.stands_before == (where.side == "before")
    return layer is not None and where.holds(layer, tensor.layers)


def fits(globs: Iterable[str], name: str) -> bool:
    """Whether one of the globs fits the whole name."""
    return any(_glob(glob).fullmatch(name) for glob in globs)


class Rule(Protocol):
    """Anything that speaks of the tensors its selector names."""

    @property
    def selector(self) -> Selector: ...

    @property
    def position(self) -> Position | None: ...


RuleT = TypeVar("RuleT", bound=Rule)


def first_match(rules: Iterable[RuleT], tensor: TensorFacts) -> RuleT | None:
    """The first rule whose selector matches: how every list of rules in a plan is read."""
    return next((rule for rule in rules if rule.selector.matches(tensor)), None)


def unused_rules(rules: Iterable[RuleT], tensors: Iterable[TensorFacts]) -> list[RuleT]:
    """The rules whose selector matches no tensor at all, whatever stands before them."""
    every = list(tensors)
    return [rule for rule in rules if not any(map(rule.selector.matches, every))]


@lru_cache(maxsize=1024)
def compile_regex(text: str) -> re.Pattern[str]:
    """ValueError, with what is wrong, where it is no regular expression of Python's."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later Python may read differently
            return re.compile(text)
    except (re.error, OverflowError, RecursionError) as failure:
        raise ValueError(f"`{excerpt(text)}` is not a regular expression: {failure}") from None


@lru_cache(maxsize=1024)
def _glob(glob: str) -> re.Pattern[str]:
    return re.compile(translate(glob))


def _inner(selectors: tuple[Selector, ...] | None) -> list[str] | None:
    return None if selectors is None else [f"{{{each.text}}}" for each in selectors]


def _one_or_list(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
