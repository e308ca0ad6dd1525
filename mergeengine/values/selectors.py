"""Which tensors a line of a plan speaks of: the one home of layers and globs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from typing import Protocol, TypeVar

_LAYER = re.compile(r"(?:^|\.)([0-9]{1,9})(?=\.|$)")
_RANGE = re.compile(r"([0-9]{1,9})(?:\s*(-)\s*([0-9]{1,9})?)?")


def layer_of(name: str) -> int | None:
    """The layer of a tensor: the first dotted component of its name that is an integer.

    ``model.layers.3.mlp.experts.7.w`` is in layer 3, ``lm_head.weight`` in none.
    """
    found = _LAYER.search(name)
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True)
class LayerRange:
    """The layers from `first` to `last`, both included; no `last`: to the end."""

    first: int
    last: int | None

    @classmethod
    def parse(cls, written: int | str) -> LayerRange:
        """Read ``4``, ``"4"``, ``"0-3"`` or ``"28-"``; ValueError otherwise."""
        found = _RANGE.fullmatch(str(written).strip())
        if found is None:
            raise ValueError(f"expected layers such as 4, 0-3 or 28-, found '{written}'")
        first = int(found[1])
        if not found[2]:
            return cls(first, first)
        last = int(found[3]) if found[3] else None
        if last is not None and last < first:
            raise ValueError(f"the layers {first}-{last} run downwards; write {last}-{first}")
        return cls(first, last)

    def __contains__(self, layer: int) -> bool:
        return self.first <= layer and (self.last is None or layer <= self.last)

    def __str__(self) -> str:
        if self.first == self.last:
            return str(self.first)
        return f"{self.first}-{'' if self.last is None else self.last}"


@dataclass(frozen=True, slots=True)
class Selector:
    """A choice of tensors by name; all conditions given must hold, none given selects all.

    `layers`: the tensor's layer lies in one of the ranges (a tensor outside the layers never
    matches). `match`: one of the globs fits the whole name; ``*`` crosses dots, case matters.
    """

    layers: tuple[LayerRange, ...] | None = None
    match: tuple[str, ...] | None = None

    @property
    def selects_all(self) -> bool:
        return self.layers is None and self.match is None

    def matches(self, name: str) -> bool:
        if self.layers is not None:
            layer = layer_of(name)
            if layer is None or not any(layer in span for span in self.layers):
                return False
        return self.match is None or any(_glob(glob).fullmatch(name) for glob in self.match)

    @property
    def text(self) -> str:
        """As a reader would write it: ``layers: 0-3, match: "*.mlp.*"``."""
        conditions = []
        if self.layers is not None:
            conditions.append("layers: " + _one_or_list([str(span) for span in self.layers]))
        if self.match is not None:
            conditions.append("match: " + _one_or_list([f'"{glob}"' for glob in self.match]))
        return ", ".join(conditions) or "every tensor"


class Rule(Protocol):
    """Anything that speaks of the tensors its selector names."""

    @property
    def selector(self) -> Selector: ...


RuleT = TypeVar("RuleT", bound=Rule)


def first_match(rules: Iterable[RuleT], name: str) -> RuleT | None:
    """The first rule whose selector matches: how every list of rules in a plan is read."""
    return next((rule for rule in rules if rule.selector.matches(name)), None)


def unused_rules(rules: Iterable[RuleT], names: Iterable[str]) -> list[RuleT]:
    """The rules whose selector matches no name at all, whatever stands before them."""
    every = list(names)
    return [rule for rule in rules if not any(map(rule.selector.matches, every))]


@lru_cache(maxsize=1024)
def _glob(glob: str) -> re.Pattern[str]:
    return re.compile(translate(glob))


def _one_or_list(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
