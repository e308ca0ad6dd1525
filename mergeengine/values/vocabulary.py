"""What a plan says of the output's vocabulary: which tokens have rows, and whose rows these are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mergeengine.values.positions import Position

RowsOf = Literal["align", "union", "tokenizer", "target", "source_ft", "index", "error"]
OF_TOKENS = ("union", "tokenizer")
"""Whose rows are those of the output's tokenizer, one for each of its tokens."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row is taken from: of the target, the first source's fine-tune (``source_ft``) or the
    source of that name, at ``row``, or at its row of ``token``. ``of`` None: it is zeros."""

    of: str | None
    token: str | None = None
    row: int | None = None


@dataclass(frozen=True, slots=True)
class TokenOrigin:
    """A token of the output whose row the plan chooses: for models that lack it, and with ``force``
    for all of them."""

    token: str
    origin: Origin
    force: bool = False
    position: Position | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """``tokens`` and ``pad_to_multiple_of`` are of rows ``OF_TOKENS`` alone."""

    rows: RowsOf = "align"
    tokens: tuple[TokenOrigin, ...] = ()
    pad_to_multiple_of: int = 1
