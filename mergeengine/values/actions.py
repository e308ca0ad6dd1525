"""What a mask does to the elements of a delta besides scaling them: the one home of actions.

Several actions on one delta apply in the order of ``ORDER``, whatever their order in the plan, and
where both a source's masks and the plan's have one, the source's comes first. All of them see the
delta itself: ``scale``, ``scaling`` and the rescaling of ``drop`` are numbers that multiply at the
end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from mergeengine.values.decisions import number_text
from mergeengine.values.references import ModelReference

_RANGE = re.compile(r"([0-9]{1,12})(?:\s*(-)\s*([0-9]{1,12})?)?")


@dataclass(frozen=True, slots=True)
class Keep:
    """Take a tensor as it is from the target, or from the fine-tune of the source `of`."""

    role: Literal["target", "source_ft"]
    of: str | None = None

    @property
    def text(self) -> str:
        return f"keep: {self.role}" + (f", of: {self.of}" if self.of is not None else "")


@dataclass(frozen=True, slots=True)
class Orthogonal:
    """Take `beta` times what lies along ``target - source_base`` out of the delta, per tensor."""

    beta: float = 1.0

    @property
    def text(self) -> str:
        beta = "" if self.beta == 1.0 else f", beta: {number_text(self.beta)}"
        return f"orthogonal_to: target_shift{beta}"

    def shown(self, delta: str) -> str:
        beta = "" if self.beta == 1.0 else f"{number_text(self.beta)}, "
        return f"orthogonal({beta}{delta})"


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows from `first` to `last`, both included; no `last`: to the end."""

    first: int
    last: int | None

    @staticmethod
    def fits(written: str) -> bool:
        """Whether a text is of rows at all."""
        return _RANGE.fullmatch(written.strip()) is not None

    @classmethod
    def parse(cls, written: int | str) -> RowRange:
        """Read ``4``, ``"0-3"`` or ``"28-"``; ValueError otherwise."""
        found = _RANGE.fullmatch(str(written).strip())
        if found is None:
            raise ValueError(f"expected rows such as 4, 0-31999 or 32000-, found '{written}'")
        first = int(found[1])
        if not found[2]:
            return cls(first, first)
        last = int(found[3]) if found[3] else None
        if last is not None and last < first:
            raise ValueError(f"the rows {first}-{last} run downwards; write {last}-{first}")
        return cls(first, last)

    def __str__(self) -> str:
        if self.first == self.last:
            return str(self.first)
        return f"{self.first}-{'' if self.last is None else self.last}"


@dataclass(frozen=True, slots=True)
class Token:
    """A row by the text of its token, as the vocabulary spells it; `id` is the row, once a
    tokenizer was asked."""

    text: str
    id: int | None = None

    def __str__(self) -> str:
        text = json.dumps(self.text, ensure_ascii=False)
        return text if self.id is None else f"{text} ({self.id})"


@dataclass(frozen=True, slots=True)
class Rows:
    """Keep these rows of the delta: the tokens of an embedding or head."""

    key: Literal["rows", "tokens"]
    ranges: tuple[RowRange | Token, ...]

    @property
    def text(self) -> str:
        return f"{self.key}: {self._ranges}"

    def shown(self, delta: str) -> str:
        return f"rows({self._ranges}, {delta})"

    @property
    def _ranges(self) -> str:
        shown = [str(each) for each in self.ranges[:4]]
        text = ", ".join(shown + ["..."] * (len(self.ranges) > 4))
        return text if len(self.ranges) == 1 else f"[{text}]"

    def texts(self) -> Iterator[str]:
        """The tokens that are named by their texts."""
        return (each.text for each in self.ranges if isinstance(each, Token))

    def looked_up(self, ids: Mapping[str, int]) -> Rows:
        """The same with the rows of those tokens."""
        ranges = (
            Token(each.text, ids[each.text]) if isinstance(each, Token) else each
            for each in self.ranges
        )
        return Rows(self.key, tuple(ranges))

    def within(self, count: int) -> tuple[tuple[int, int], ...] | None:
        """First and last row of each range of a tensor of `count` rows, in order and apart; None
        where it has not all of these rows."""
        found: list[tuple[int, int]] = []
        for first, last in sorted(_ends(each, count - 1) for each in self.ranges):
            if not first <= last < count:
                return None
            if found and first <= found[-1][1] + 1:
                found[-1] = (found[-1][0], max(last, found[-1][1]))
            else:
                found.append((first, last))
        return tuple(found)


def _ends(rows: RowRange | Token, end: int) -> tuple[int, int]:
    if isinstance(rows, Token):
        assert rows.id is not None, "looked up by the caller"
        return rows.id, rows.id
    return rows.first, end if rows.last is None else rows.last


@dataclass(frozen=True, slots=True)
class FileMask:
    """Multiply by a tensor of the same name in a file; without one there by `default`, and where
    that is None it is an error."""

    file: ModelReference
    default: float | None = None

    @property
    def text(self) -> str:
        default = "" if self.default is None else f", default: {number_text(self.default)}"
        return f"file: {self.file}{default}"

    def shown(self, delta: str) -> str:
        return f"file({self.file}, {delta})"


@dataclass(frozen=True, slots=True)
class Above:
    """Keep the elements whose magnitude is greater than `limit`."""

    limit: float

    @property
    def text(self) -> str:
        return f"above: {number_text(self.limit)}"

    def shown(self, delta: str) -> str:
        return f"above({number_text(self.limit)}, {delta})"


@dataclass(frozen=True, slots=True)
class Ranked:
    """Keep the share of a tensor's elements that has the largest or smallest magnitudes."""

    key: Literal["top", "bottom"]
    share: float

    @property
    def text(self) -> str:
        return f"{self.key}: {number_text(self.share)}"

    def shown(self, delta: str) -> str:
        return f"{self.key}({number_text(self.share)}, {delta})"

    def count(self, elements: int) -> int:
        """How many of so many elements: ``max(1, floor(share * elements))`` of the decimal number
        as written, so that 0.29 of 100 are 29."""
        return max(1, int(Fraction(repr(self.share)) * elements))


@dataclass(frozen=True, slots=True)
class Sign:
    """Keep the elements that have the sign of the same element of the delta of the source `of`;
    no `of`: of ``target - source_base``."""

    of: str | None = None

    @property
    def text(self) -> str:
        return "sign: target_shift" if self.of is None else f"sign: agree_with {self.of}"

    def shown(self, delta: str) -> str:
        return f"sign({'target_shift' if self.of is None else self.of}, {delta})"


@dataclass(frozen=True, slots=True)
class Drop:
    """Leave each element out with `probability`, and divide what is left by ``1 - probability``."""

    probability: float

    @property
    def text(self) -> str:
        return f"drop: {number_text(self.probability)}"

    def shown(self, delta: str) -> str:
        return f"drop({number_text(self.probability)}, {delta})"


Action = Orthogonal | Rows | FileMask | Above | Ranked | Sign | Drop

# First what mixes elements, then what chooses by place, size and sign, and what is left is thinned.
ORDER: tuple[type[Action], ...] = (Orthogonal, Rows, FileMask, Above, Ranked, Sign, Drop)


@dataclass(frozen=True, slots=True)
class Applied:
    """An action on one delta, and whose masks it is from."""

    action: Action
    level: Literal["source", "plan"]


def in_order(source: Sequence[Action], plan: Sequence[Action]) -> tuple[Applied, ...]:
    """The actions of a source's mask and of the plan's on one delta, as they apply."""
    every = [Applied(action, "source") for action in source]
    every += [Applied(action, "plan") for action in plan]
    return tuple(sorted(every, key=lambda each: ORDER.index(type(each.action))))
