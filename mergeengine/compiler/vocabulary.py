"""Vocabularies that differ: which rows the output has, and which rows of the models they are.

The output's tokenizer gives rows their tokens; where it names none, a row may be that of a token
which only the target or a fine-tune has, at the id it has there. A model's row for a token is found
by the model's own tokenizer. Rows without a token (padding) are matched by their index and stay the
target's; everything of a model whose files list no tokens is matched by its index.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.token_rows import MOST_ROWS, TokenRows, token_rows, vocabulary_rows
from mergeengine.checkpoints.vocabulary import tokens, vocabulary_digest
from mergeengine.compiler.arrangement import (
    Arrangement,
    Places,
    padded_to_fine_tune,
    where,
    without,
)
from mergeengine.compiler.token_origins import Named, choose
from mergeengine.errors import CheckpointError
from mergeengine.plan.plan import Plan
from mergeengine.values.vocabulary import OF_TOKENS

_SHOWN = 5  # tokens that a sentence names


def arrange(
    plan: Plan,
    target: Checkpoint,
    bases: Sequence[Checkpoint],
    fts: Sequence[Checkpoint],
    tokenizer: Checkpoint | None = None,
) -> Arrangement | None:
    """The rows of the output; None where all vocabularies are the same, or a model has none or one
    beyond all measure.

    ``tokenizer`` is the model whose tokenizer the output gets, with the tokens that are added to
    it. Raises CheckpointError where rows cannot be matched, or may not differ, and PlanError for
    rows that the plan names and no model has.
    """
    rows = {model: vocabulary_rows(model) for model in (target, *bases, *fts)}
    sizes = {model: size for model, size in rows.items() if size is not None and size <= MOST_ROWS}
    if len(sizes) < len(rows):
        return None
    if plan.compatibility == "finetuning-transfer":
        return padded_to_fine_tune(sizes, target, bases, fts)
    mode = plan.vocabulary.rows
    if mode == "index":
        if len(set(sizes.values())) > 1:
            raise CheckpointError(_differ(sizes, {}, mode))
        return None
    keys = {model: (size, vocabulary_digest(model)) for model, size in sizes.items()}
    alike = len(set(keys.values())) == 1 and (tokenizer is None or tokenizer in sizes)
    if alike and mode not in OF_TOKENS:
        return None  # nearly always: no tokens are read
    tables = _tables(keys)
    known = [model for model in tables if tables[model] is not None]
    donor = tokenizer if tokenizer is not None else target
    if mode in ("target", "source_ft"):
        donor = target if mode == "target" else fts[0]
    given = tables[donor] if donor in tables and mode not in OF_TOKENS else token_rows(donor)
    if given is None and mode not in ("target", "source_ft"):
        # then the target's tokenizer is written, if there is one
        donor = next((model for model in (target, *fts, *bases) if model in known), target)
        given = tables[donor]
    arranging = _Arranging(plan, target, bases, fts, donor, given, sizes, tables)
    if mode in OF_TOKENS:
        if arranging.changes_nothing():
            return None
    elif _alike([given, *(tables[m] for m in known)]) and len(set(sizes.values())) == 1:
        return None
    if mode == "error":
        if _alike([tables[m] for m in known]) and len(set(sizes.values())) == 1:
            return None
        raise CheckpointError(_differ(sizes, tables, mode))
    return arranging.result()


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


def _differ(
    sizes: dict[Checkpoint, int], tables: Mapping[Checkpoint, TokenRows | None], mode: str
) -> str:
    lines = []
    for model, size in sizes.items():
        lines.append(f"\n    {model}: {size} rows")
        if mode == "error":
            table = tables[model]
            lines.append(", no list of tokens" if table is None else f", {_count(table)} tokens")
    return (
        f"the vocabularies differ, and the plan says `vocabulary: {mode}`:{''.join(lines)}\n"
        "  `vocabulary: align` matches rows by their tokens"
    )


def _count(table: TokenRows) -> int:
    return len(table) - table.count(0)


@dataclass(slots=True)
class _Arranging:
    """``given`` are the tokens of ``donor``'s tokenizer, None where it lists none."""

    plan: Plan
    target: Checkpoint
    bases: Sequence[Checkpoint]
    fts: Sequence[Checkpoint]
    donor: Checkpoint
    given: TokenRows | None
    sizes: dict[Checkpoint, int]
    tables: dict[Checkpoint, TokenRows | None]
    means: int = 0  # rows at the end that are the mean of all before them

    def changes_nothing(self) -> bool:
        """Whether every model's rows are just those of the output."""
        out = self._tokens()
        tables = [table for table in self.tables.values() if table is not None]
        same = _alike([out, *tables]) and set(self.sizes.values()) == {len(out)}
        return same and not self.means and not self.plan.vocabulary.tokens

    def result(self) -> Arrangement:
        out = self._tokens()
        size = len(out)
        known = self.given is not None
        numbers = list(range(max(size, *self.sizes.values())))  # one object each, for all places
        self._check(out)
        named, nobody = out[: size - self.means], (-1,) * self.means
        places = {
            model: (*self._places(model, named if known else None, len(named), numbers), *nobody)
            for model in self.sizes
        }
        others = self._others(places, size)
        chosen = choose(self.plan, out, self._named_models(), others)
        forced = [row for row, entry in chosen.items() if entry.force]
        if forced:
            places = {model: without(rows, forced) for model, rows in places.items()}
        target, own = places[self.target], tuple(places[ft] for ft in self.fts)
        meant = [bool(token) or not known for token in out]  # padding gets no delta
        before, after, delta = [], [], [False] * size
        for source, base, ft in zip(self.plan.sources, self.bases, own, strict=True):
            in_base = places[base]
            shared = [
                m and min(rows) >= 0 for m, *rows in zip(meant, target, in_base, ft, strict=True)
            ]
            delta = [d or s for d, s in zip(delta, shared, strict=True)]
            # The difference of a whole model is to the target, which lacks no row.
            before.append(in_base if source.whole else where(in_base, shared))
            after.append(where(ft, meant if source.whole else shared))
        parts = list(others.values())
        free = [max(rows) < 0 for rows in zip(target, *parts, strict=True)]
        free[size - self.means :] = [False] * self.means
        lacking = {token for n, token in enumerate(out) if token and free[n] and n not in chosen}
        counts = self._counts(out, known, target, delta, free)
        return Arrangement(
            size=size,
            target=target,
            before=tuple(before),
            after=tuple(after),
            own=own,
            others=others,
            counts=counts,
            notes=tuple(self._notes(counts)),
            warnings=(*self._lacking(lacking), *self._warnings(out)),
            means=self.means,
        )

    def _tokens(self) -> TokenRows:
        """The token of each row of the output."""
        given = self.given
        mode = self.plan.vocabulary.rows
        if mode in OF_TOKENS:
            out = array("Q", given or [])
            self.means = -len(out) % self.plan.vocabulary.pad_to_multiple_of
            out.extend([0] * self.means)
            return out
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

    def _others(self, places: Mapping[Checkpoint, Places], size: int) -> dict[Checkpoint, Places]:
        """The rows that stand in where a model lacks one: the target's, if the plan names one, and
        where it has none, or is not named, those of all."""
        first = places[self.target] if self.plan.own_target else (-1,) * size
        lacks = [row < 0 for row in first]
        return {
            model: places[model] if model is self.target else where(places[model], lacks)
            for model in dict.fromkeys((self.target, *self.fts))
        }

    def _named_models(self) -> dict[str, Named]:
        """The models that may give rows, as a plan names them: a role, or a source's name."""
        models = {source.name: ft for source, ft in zip(self.plan.sources, self.fts, strict=True)}
        models |= {"target": self.target, "source_ft": self.fts[0]}
        return {name: (m, self.sizes[m], self.tables[m]) for name, m in models.items()}

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
        if table is None and self.donor.added_tokens:  # it cannot have what is added to others'
            common = min(common, self.donor.added_tokens[0].number)
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

    def _lacking(self, tokens: set[int]) -> Iterator[str]:
        """Of tokens of the output that no model has a row for; padding may be zeros."""
        if not tokens:
            return
        named = self._named(self.donor, self.given, tokens)
        text = (
            f"the tokenizer of {self.donor} has {len(tokens)} tokens that neither the target nor a "
            f"fine-tune has a row for ({named})"
        )
        if self.plan.vocabulary.rows not in OF_TOKENS:
            raise CheckpointError(f"{text}: choose another with `output.tokenizer`")
        yield f"{text}: their rows are zeros; `tokens` under `vocabulary` can choose others"

    def _counts(
        self, out: TokenRows, known: bool, target: Places, delta: list[bool], empty: list[bool]
    ) -> dict[str, int]:
        padding = sum(known and not token for token in out)
        shared = sum(delta)
        kept = sum(t >= 0 and not d for t, d in zip(target, delta, strict=True))
        return {
            "rows": len(out),
            "delta": shared,
            "copied": len(out) - self.means - shared - kept - sum(empty),
            "kept": kept,
            "padding": padding,
        }

    def _notes(self, counts: dict[str, int]) -> Iterator[str]:
        order = f"in the order of the tokenizer of {self.donor}"
        if self.given is None:
            order = "by their index, since no model lists its tokens"
        zeros = counts["rows"] - counts["delta"] - counts["copied"] - counts["kept"] - self.means
        yield (
            f"vocabulary: {counts['rows']} rows, {order}: {counts['delta']} with a delta, "
            f"{counts['copied']} copied from the sources, {counts['kept']} the target's as they are"
            + (f", {zeros} of zeros" if zeros else "")
            + (f"; {counts['padding']} of all are padding" if counts["padding"] else "")
        )
        if self.donor.added_tokens:
            yield f"vocabulary: {len(self.donor.added_tokens)} tokens are added to the tokenizer"
        if self.plan.vocabulary.tokens:
            yield f"vocabulary: the plan chooses the rows of {len(self.plan.vocabulary.tokens)}"
        if self.given is not None:
            for model in self.sizes:
                if self.tables[model] is None:
                    yield f"vocabulary: {model} lists no tokens; its rows are taken by their index"

    def _warnings(self, out: TokenRows) -> Iterator[str]:
        """Tokens that the output has no row for, though the plan did not ask for it."""
        if self.plan.vocabulary.rows != "align":
            return
        named = {0, *out}
        for model in dict.fromkeys((self.target, *self.fts)):
            table = self.tables[model]
            lost = set(table or ()) - named
            if lost:
                yield (
                    f"{len(lost)} tokens of {model} have no row in the output "
                    f"({self._named(model, table, lost)}): the tokenizer of {self.donor} does not "
                    "know them and gives their ids to others; `output.tokenizer` chooses another"
                )

    def _named(self, model: Checkpoint, table: TokenRows | None, digests: set[int]) -> str:
        """Some of the tokens, as texts."""
        assert table is not None
        names = dict.fromkeys(
            token for token, row in tokens(model) if row < len(table) and table[row] in digests
        )
        shown = ", ".join(ascii(name)[1:-1] for name in islice(names, _SHOWN))
        return shown + (", ..." if len(names) > _SHOWN else "")


def _listed(models: Sequence[Checkpoint]) -> str:
    return ", ".join(map(str, models))
