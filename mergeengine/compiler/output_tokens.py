"""The tokens of the output's tokenizer: a model's, and for a union those of the others.

Ids of the model's own tokens stay; new ones follow them. First come ordinary tokens, then those
that tokenizers have beside their vocabularies (special ones, as a rule), each model by model in the
order of the plan and by their ids there, and last the tokens that only the plan names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from mergeengine.checkpoints.checkpoint import AddedToken, Checkpoint
from mergeengine.checkpoints.token_rows import MOST_ROWS, token_digest, vocabulary_rows
from mergeengine.checkpoints.vocabulary import added_tokens, tokens, vocabulary_digest
from mergeengine.errors import CheckpointError
from mergeengine.plan.plan import Plan
from mergeengine.values.vocabulary import OF_TOKENS

_NEW: Mapping[str, bool] = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": False,
}
"""How a token that the plan adds is found in a text: wherever it stands."""


def output_tokenizer(
    plan: Plan, tokenizer: Checkpoint, target: Checkpoint, fts: Sequence[Checkpoint]
) -> Checkpoint:
    """The model whose tokenizer the output gets, which knows the tokens that are added to it.

    ``tokenizer`` itself where the plan does not say whose tokens have rows. CheckpointError where
    no tokenizer lists its tokens.
    """
    if plan.vocabulary.rows not in OF_TOKENS:
        return tokenizer
    donor = next((model for model in (tokenizer, target.beside) if any(tokens(model))), None)
    if donor is None:
        raise CheckpointError(
            f"`vocabulary: {plan.vocabulary.rows}` makes a row for each token of the output's "
            f"tokenizer, and {tokenizer} has no list of tokens (tokenizer.json): put its tokenizer "
            "beside its weights, or choose another with `output.tokenizer`"
        )
    known: set[int] = set()
    size = 0
    for text, number in tokens(donor):
        known.add(token_digest(text))
        size = max(size, number + 1)
    if size > MOST_ROWS:
        raise CheckpointError(
            f"{donor}: a token has the id {size - 1}, which is beyond all measure"
        )
    found: list[tuple[str, Mapping[str, bool] | None]] = []
    if plan.vocabulary.rows == "union":
        models = list(_differing(donor, (target, *fts)))
        beside = {model: added_tokens(model) for model in models}
        for model in models:
            for text in _in_order(model, known):
                if text not in beside[model] and _is_new(text, known):
                    found.append((text, None))
        for model in models:
            for text in _in_order(model, known):
                if text in beside[model] and _is_new(text, known):
                    found.append((text, beside[model][text]))
    for entry in plan.vocabulary.tokens:
        if _is_new(entry.token, known):
            found.append((entry.token, _NEW))
    added = (AddedToken(text, size + n, settings) for n, (text, settings) in enumerate(found))
    return replace(donor, added_tokens=tuple(added)) if found else donor


def _differing(donor: Checkpoint, models: Sequence[Checkpoint]) -> Iterator[Checkpoint]:
    """The models whose lists of tokens are not the same files as ones before them."""
    seen = {vocabulary_digest(donor)}
    for model in dict.fromkeys(models):
        digest = vocabulary_digest(model)
        if digest not in seen:
            seen.add(digest)
            yield model


def _in_order(model: Checkpoint, known: set[int]) -> list[str]:
    """The tokens of a model's rows that are not known yet, by their ids."""
    rows = vocabulary_rows(model) or 0
    unknown = {text: number for text, number in tokens(model) if token_digest(text) not in known}
    return [text for text, number in sorted(unknown.items(), key=_number) if number < rows]


def _number(item: tuple[str, int]) -> int:
    return item[1]


def _is_new(text: str, known: set[int]) -> bool:
    digest = token_digest(text)
    if digest in known:
        return False
    known.add(digest)
    return True
