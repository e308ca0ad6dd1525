"""Other names for the same tensors: rules of the plan, and layers that stand for other layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from mergeengine.values.kinds import stack_of
from mergeengine.values.positions import Position

RoleOfName = Literal["source_base", "source_ft"]
ROLES_OF_NAMES: tuple[RoleOfName, ...] = ("source_base", "source_ft")
_SPAN = re.compile(r"([0-9]{1,6})(?:\s*-\s*([0-9]{1,6}))?")


@dataclass(frozen=True)
class Rename:
    """Gives the tensors of a source the names that they have in the target.

    `pattern` is a glob that fits the whole name, of which each ``*`` of `to` takes what the ``*``
    of the same number stands for; or, with `regex`, an expression that is found in the name and
    replaced by `to`, where ``\\1`` is its first group. `roles` are the models it holds for.
    """

    pattern: str
    to: str
    regex: bool = False
    roles: tuple[RoleOfName, ...] = ROLES_OF_NAMES
    position: Position | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """ValueError where `to` asks for more than `pattern` has, or `pattern` is no expression."""
        if self.regex:
            try:
                self._expression.sub(self.to, "")
                groups = self._expression.groups
                for number in re.findall(r"\\g?<?([0-9]{1,3})", self.to):
                    if int(number) > groups:
                        raise ValueError(f"`to` names group {number}, and `regex` has {groups}")
            except (re.error, IndexError) as error:
                raise ValueError(f"not a usable expression or replacement: {error}") from None
        elif self.to.count("*") > self.pattern.count("*"):
            raise ValueError("`to` has more * than `match`")

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        if self.regex:
            return re.compile(self.pattern)
        return re.compile("(.*)".join(map(re.escape, self.pattern.split("*"))), re.DOTALL)

    def apply(self, name: str) -> str | None:
        """The new name; None where the rule does not fit."""
        if self.regex:
            renamed, count = self._expression.subn(self.to, name)
            return renamed if count else None
        found = self._expression.fullmatch(name)
        if found is None:
            return None
        parts = iter(found.groups())
        head, *rest = self.to.split("*")
        return head + "".join(next(parts) + each for each in rest)

    @property
    def text(self) -> str:
        kind = "regex" if self.regex else "match"
        return f"{kind}: {self.pattern}, to: {self.to}"


@dataclass(frozen=True, slots=True)
class LayerMap:
    """For layers of the target, the layers of the sources whose delta they get.

    A layer of the target that is not named gets none.
    """

    layers: Mapping[int, int]

    @classmethod
    def parse(cls, written: Mapping[str, str]) -> LayerMap:
        """Read ``{"0-15": "0-15", "16-23": "24-31", "24": "31"}``, the target's first.

        A range stands for one of the same length, or for one layer alone. ValueError otherwise.
        """
        layers: dict[int, int] = {}
        for target, source in written.items():
            receivers, givers = _span(target), _span(source)
            if len(givers) not in (1, len(receivers)):
                raise ValueError(
                    f"{target} are {len(receivers)} layers and {source} are {len(givers)}: "
                    "expected as many, or one"
                )
            for number, receiver in enumerate(receivers):
                if receiver in layers:
                    raise ValueError(f"layer {receiver} of the target is named twice")
                layers[receiver] = givers[number if len(givers) > 1 else 0]
        return cls(layers)

    def source_name(self, name: str) -> str | None:
        """What a tensor of the target is called in a source; None where its layer gets nothing."""
        stack = stack_of(name)
        if stack is None:
            return name
        prefix, layer = stack
        source = self.layers.get(layer)
        if source is None:
            return None
        return f"{prefix}{source}{name[len(prefix) + len(str(layer)) :]}"

    def uses(self, name: str) -> bool:
        """Whether a tensor of a source lies in a layer that some layer of the target gets."""
        stack = stack_of(name)
        return stack is None or stack[1] in self.layers.values()


def _span(written: str) -> range:
    found = _SPAN.fullmatch(written.strip())
    if found is None:
        raise ValueError(f"expected layers such as 4 or 0-15, found '{written}'")
    first = int(found[1])
    last = first if found[2] is None else int(found[2])
    if last < first:
        raise ValueError(f"the layers {first}-{last} run downwards; write {last}-{first}")
    return range(first, last + 1)
