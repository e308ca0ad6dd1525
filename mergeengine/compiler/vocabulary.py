"""Vocabularies that differ: which rows the output has, and which rows of the models they are.

The output's tokenizer gives rows their tokens; where it names none, a row may be that of a token
which only the target or a fine-tune has, at the id it has there. A model's row for a token is found
by the model's own tokenizer. Rows without a token (padding) are matched by their index and stay the
target's; everything of a model whose files list no tokens is matched by its index.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.token_rows import MOST_ROWS, TokenRows, token_rows, vocabulary_rows
from mergeengine.checkpoints.vocabulary import tokens, vocabulary_digest
from mergeengine.errors import CheckpointError
from mergeengine.plan.plan import Plan

Places = tuple[int, ...]
"""For each row of the output the row of one model, or -1."""

_SHOWN = 5  # tokens that a sentence names


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The rows of the output, and for each source those of its base and its fine-tune.

    ``target`` are the rows that are the target's, ``copied`` those taken from a fine-tune in their
    place; ``before`` and ``after`` those whose difference is added, ``own`` all that a fine-tune
    has.
    """

    size: int
    target: Places
    copied: tuple[Places, ...]
    before: tuple[Places, ...]
    after: tuple[Places, ...]
    own: tuple[Places, ...]
    counts: dict[str, int]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def arrange(
    plan: Plan,
    target: Checkpoint,
    bases: Sequence[Checkpoint],
    fts: Sequence[Checkpoint],
    tokenizer: Checkpoint | None = None,
) -> Arrangement | None:
    """The rows of the output; None where all vocabularies are the same, or a model has none or one
    beyond all measure.

    ``tokenizer`` is the model whose tokenizer the output gets. Raises CheckpointError where rows
    cannot be matched, or may not differ.
    """
    rows = {model: vocabulary_rows(model) for model in (target, *bases, *fts)}
    sizes = {model: size for model, size in rows.items() if size is not None and size <= MOST_ROWS}
    if len(sizes) < len(rows):
        return None
    if plan.compatibility == "finetuning-transfer":
        return _padded(sizes, target, bases, fts)
    keys = {model: (size, vocabulary_digest(model)) for model, size in sizes.items()}
    if len(set(keys.values())) == 1 and (tokenizer is None or tokenizer in sizes):
        return None  # nearly always: no tokens are read
    tables = _tables(keys)
    known = [model for model in tables if tables[model] is not None]
    donor = tokenizer if tokenizer is not None else target
    if donor not in tables:
        tables[donor] = token_rows(donor)
    if plan.vocabulary in ("target", "source_ft"):
        donor = target if plan.vocabulary == "target" else fts[0]
    elif tables[donor] is None:  # then the target's tokenizer is written, if there is one
        donor = next((model for model in (target, *fts, *bases) if model in known), target)
    if _alike([tables[m] for m in (donor, *known)]) and len(set(sizes.values())) == 1:
        return None
    if plan.vocabulary == "error":
        if _alike([tables[m] for m in known]) and len(set(sizes.values())) == 1:
            return None
        raise CheckpointError(_differ(sizes, tables))
    return _Arranging(plan, target, bases, fts, donor, sizes, tables).result()


def _tables(keys: dict[Checkpoint, tuple[int, str]]) -> dict[Checkpoint, TokenRows | None]:
    """The tokens of each model's rows; equal files are read once. ``keys`` are the rows and the
    digests of the vocabularies."""
    made: dict[tuple[int, str], TokenRows | None] = {}
    tables = {}
    for model, key in keys.items():
        if key not in made:
            made[key] = token_rows(model, key[0])
        tables[model] = made[key]
    return tables


def _alike(tables: Sequence[TokenRows | None]) -> bool:
    return all(table == tables[0] for table in tables[1:])


def _differ(sizes: dict[Checkpoint, int], tables: dict[Checkpoint, TokenRows | None]) -> str:
    lines = []
    for model, size in sizes.items():
        table = tables[model]
        listed = "no list of tokens" if table is None else f"{_count(table)} tokens"
        lines.append(f"\n    {model}: {size} rows, {listed}")
    return (
        f"the vocabularies differ, and the plan says `vocabulary: error`:{''.join(lines)}\n"
        "  `vocabulary: align` matches rows by their tokens"
    )


def _count(table: TokenRows) -> int:
    return len(table) - table.count(0)


def _padded(
    sizes: dict[Checkpoint, int],
    target: Checkpoint,
    bases: Sequence[Checkpoint],
    fts: Sequence[Checkpoint],
) -> Arrangement | None:
    """As the code of the fine-tuning transfer paper has it (Lin et al. 2025, arXiv:2503.20110):
    target and base get rows of zeros up to the fine-tune's, all rows by their index. So rows that
    only the fine-tune has come out multiplied by the scaling."""
    size = sizes[fts[0]]
    longer = [model for model in sizes if sizes[model] > size]
    longer += [ft for ft in dict.fromkeys(fts) if sizes[ft] < size]
    if longer:
        lines = "".join(f"\n    {model}: {sizes[model]} rows" for model in (fts[0], *longer))
        raise CheckpointError(
            "`compatibility: finetuning-transfer` pads embeddings to the fine-tune's rows, and "
            f"these do not fit:{lines}\n  `vocabulary: align` matches rows by their tokens"
        )
    if all(other == size for other in sizes.values()):
        return None

    def padded(model: Checkpoint) -> Places:
        return (*range(sizes[model]), *[-1] * (size - sizes[model]))

    own = tuple(map(padded, fts))
    nothing = (-1,) * size
    added = size - sizes[target]
    note = f"vocabulary: the target gets {added} rows of zeros, as finetuning-transfer has it"
    return Arrangement(
        size=size,
        target=padded(target),
        copied=tuple(nothing for _ in fts),
        before=tuple(map(padded, bases)),
        after=own,
        own=own,
        counts={"rows": size, "delta": size, "copied": 0, "kept": 0, "padding": 0},
        notes=(note,),
        warnings=(),
    )


@dataclass(slots=True)
class _Arranging:
    plan: Plan
    target: Checkpoint
    bases: Sequence[Checkpoint]
    fts: Sequence[Checkpoint]
    donor: Checkpoint
    sizes: dict[Checkpoint, int]
    tables: dict[Checkpoint, TokenRows | None]

    def result(self) -> Arrangement:
        out = self._tokens()
        size = len(out)
        known = self.tables[self.donor] is not None
        numbers = list(range(max(size, *self.sizes.values())))  # one object each, for all places
        self._check(out)
        places = {m: self._places(m, out if known else None, size, numbers) for m in self.sizes}
        target, own = places[self.target], tuple(places[ft] for ft in self.fts)
        pairs = [(places[base], ft) for base, ft in zip(self.bases, own, strict=True)]
        meant = [bool(token) or not known for token in out]  # padding gets no delta
        shared = [
            [m and min(rows) >= 0 for m, *rows in zip(meant, target, base, ft, strict=True)]
            for base, ft in pairs
        ]
        copied, free = [], [t < 0 for t in target]
        for ft in own:  # the first that has a row gives it
            copied.append(tuple(f if e else -1 for f, e in zip(ft, free, strict=True)))
            free = [e and f < 0 for f, e in zip(ft, free, strict=True)]
        self._check_made(out, free)

        def where(rows: Places, chosen: list[bool]) -> Places:
            return tuple(row if is_so else -1 for row, is_so in zip(rows, chosen, strict=True))

        delta = [any(flags) for flags in zip(*shared, strict=True)]
        counts = self._counts(out, known, target, delta, free)
        return Arrangement(
            size=size,
            target=target,
            copied=tuple(copied),
            before=tuple(where(b, s) for (b, _), s in zip(pairs, shared, strict=True)),
            after=tuple(where(f, s) for (_, f), s in zip(pairs, shared, strict=True)),
            own=own,
            counts=counts,
            notes=tuple(self._notes(counts)),
            warnings=tuple(self._warnings(out)),
        )

    def _tokens(self) -> TokenRows:
        """The token of each row of the output."""
        given = self.tables[self.donor]
        mode = self.plan.vocabulary
        if mode == "align":
            size = max(self.sizes[model] for model in (self.target, *self.fts))
            size = max(size, len(given) if given is not None else 0)
        else:
            size = self.sizes[self.target if mode == "target" else self.fts[0]]
        out = array("Q", given or [])[:size]
        out.extend([0] * (size - len(out)))
        if given is None or mode != "align":
            return out
        named = set(out)
        for model in (self.target, *self.fts):
            for row, token in enumerate(self.tables[model] or ()):
                if token and not out[row] and token not in named:
                    out[row] = token
                    named.add(token)
        return out

    def _check(self, out: TokenRows) -> None:
        """A model that lists no tokens can only be matched by index, where all ids agree."""
        unknown = [model for model in self.sizes if self.tables[model] is None]
        if not unknown:
            return
        known = [table for table in self.tables.values() if table is not None]
        agreed = out if any(out) or not known else known[0]
        differing = [
            model
            for model in self.sizes
            if any(
                a and b and a != b for a, b in zip(self.tables[model] or (), agreed, strict=False)
            )
        ]
        if differing:
            raise CheckpointError(
                f"the vocabularies cannot be aligned: {_listed(differing)} and another tokenizer "
                f"give the same ids to different tokens, and {_listed(unknown)} has no list of "
                "tokens to match its rows by: put its tokenizer (tokenizer.json, vocab.json, "
                "vocab.txt or tokenizer.model) beside its weights"
            )

    def _places(
        self, model: Checkpoint, out: TokenRows | None, size: int, numbers: list[int]
    ) -> Places:
        """Which row of a model each row of the output is."""
        table, rows = self.tables[model], self.sizes[model]
        common = min(rows, size)
        if table is None or out is None:
            return (*numbers[:common], *[-1] * (size - common))
        found: dict[int, int] | None = None
        places = numbers[:common] + [-1] * (size - common)
        for row in range(size):
            token = out[row]
            if row < common and table[row] == token:
                continue
            if token:
                if found is None:
                    found = {other: number for number, other in zip(numbers, table, strict=False)}
                places[row] = found.get(token, -1)
            else:
                places[row] = -1
        return tuple(places)

    def _check_made(self, out: TokenRows, empty: list[bool]) -> None:
        """Every token of the output has a row in some model; padding may be zeros."""
        lacking = {token for token, is_empty in zip(out, empty, strict=True) if token and is_empty}
        if lacking:
            raise CheckpointError(
                f"the tokenizer of {self.donor} has {len(lacking)} tokens that neither the target "
                f"nor a fine-tune has a row for ({self._named(self.donor, lacking)}): choose "
                "another with `output.tokenizer`"
            )

    def _counts(
        self, out: TokenRows, known: bool, target: Places, delta: list[bool], empty: list[bool]
    ) -> dict[str, int]:
        padding = sum(known and not token for token in out)
        shared = sum(delta)
        kept = sum(t >= 0 and not d for t, d in zip(target, delta, strict=True))
        return {
            "rows": len(out),
            "delta": shared,
            "copied": len(out) - shared - kept - sum(empty),
            "kept": kept,
            "padding": padding,
        }

    def _notes(self, counts: dict[str, int]) -> Iterator[str]:
        order = f"in the order of the tokenizer of {self.donor}"
        if self.tables[self.donor] is None:
            order = "by their index, since no model lists its tokens"
        zeros = counts["rows"] - counts["delta"] - counts["copied"] - counts["kept"]
        yield (
            f"vocabulary: {counts['rows']} rows, {order}: {counts['delta']} with a delta, "
            f"{counts['copied']} copied from source_ft, {counts['kept']} the target's as they are"
            + (f", {zeros} of zeros" if zeros else "")
            + (f"; {counts['padding']} of all are padding" if counts["padding"] else "")
        )
        if self.tables[self.donor] is not None:
            for model in self.sizes:
                if self.tables[model] is None:
                    yield f"vocabulary: {model} lists no tokens; its rows are taken by their index"

    def _warnings(self, out: TokenRows) -> Iterator[str]:
        """Tokens that the output has no row for, though the plan did not ask for it."""
        if self.plan.vocabulary != "align":
            return
        named = {0, *out}
        for model in dict.fromkeys((self.target, *self.fts)):
            lost = set(self.tables[model] or ()) - named
            if lost:
                yield (
                    f"{len(lost)} tokens of {model} have no row in the output "
                    f"({self._named(model, lost)}): the tokenizer of {self.donor} does not know "
                    "them and gives their ids to others; `output.tokenizer` chooses another"
                )

    def _named(self, model: Checkpoint, digests: set[int]) -> str:
        """Some of the tokens, as texts."""
        table = self.tables[model]
        assert table is not None
        names = dict.fromkeys(
            token for token, row in tokens(model) if row < len(table) and table[row] in digests
        )
        shown = ", ".join(ascii(name)[1:-1] for name in islice(names, _SHOWN))
        return shown + (", ..." if len(names) > _SHOWN else "")


def _listed(models: Sequence[Checkpoint]) -> str:
    return ", ".join(map(str, models))
