"""Rows that a plan chooses, token by token, in the place of those that models have or lack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.token_rows import TokenRows, token_digest
from mergeengine.compiler.arrangement import Places, without
from mergeengine.errors import PlanError
from mergeengine.plan.plan import Plan
from mergeengine.values.vocabulary import TokenOrigin

Named: TypeAlias = "tuple[Checkpoint, int, TokenRows | None]"
"""A model, how many rows it has, and their tokens where it lists them."""


def choose(
    plan: Plan,
    out: TokenRows,
    models: Mapping[str, Named],
    others: dict[Checkpoint, Places],
) -> dict[int, TokenOrigin]:
    """Let the rows that the plan chooses stand in where models lack them (``others``).

    ``models`` are those that it may name. Returns the entries by the output's rows; PlanError for
    rows that there are not.
    """
    chosen: dict[int, TokenOrigin] = {}
    found: list[tuple[int, Checkpoint, int]] = []
    problems = []
    for entry in plan.vocabulary.tokens:
        row = out.index(token_digest(entry.token))
        chosen[row] = entry
        if entry.origin.of is None:
            continue
        model, size, table = models[entry.origin.of]
        try:
            found.append((row, model, _row(entry, size, table)))
        except ValueError as error:
            problems.append(f"{entry.position}: {model} {error}")
    if problems:
        raise PlanError("\n".join(problems))
    for model, rows in others.items() if chosen else ():
        own = list(without(rows, chosen))
        for row, of, place in found:
            if of is model:
                own[row] = place
        others[model] = tuple(own)
    return chosen


def _row(entry: TokenOrigin, size: int, table: TokenRows | None) -> int:
    """The row that an entry names; ValueError where there is none."""
    row, text = entry.origin.row, entry.origin.token or entry.token
    if row is not None:
        if row >= size:
            raise ValueError(f"has {size} rows, and no row {row}")
        return row
    if table is None:
        raise ValueError(f"lists no tokens to find `{text}` by; name its `row`")
    digest = token_digest(text)
    if digest not in table:
        raise ValueError(f"has no row for the token `{text}`")
    return table.index(digest)
