"""Ids of tokens in config files, which must be those of the tokenizer that lies beside them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.small_files import read_json
from mergeengine.checkpoints.vocabulary import token_ids, tokens
from mergeengine.errors import CheckpointError

_KEY = re.compile(r"(?:\w+_)?token_(?:ids?|index)|(?:begin_)?suppress_tokens")
_ROLE = re.compile(r"(bos|eos|pad|unk|sep|cls|mask)_token_id")


@dataclass(frozen=True, slots=True)
class OutputVocabulary:
    """The output's: the model whose tokenizer lies beside the weights, and the embedding's rows."""

    tokenizer: Checkpoint | None
    rows: int | None = None


def correct_ids(
    config: dict[str, Any], file: str, owner: Checkpoint, vocabulary: OutputVocabulary
) -> Iterator[str]:
    """Change the ids of tokens in ``config`` from the owner's to the tokenizer's; one note for each
    key that changed.

    A token that the tokenizer does not have keeps its id where that is nobody else's. Where it is,
    the token leaves its list, or becomes the one that the tokenizer has in its role;
    CheckpointError where there is neither. Nothing is done where the files of one of the two list
    no tokens.
    """
    tokenizer = vocabulary.tokenizer
    if tokenizer is None or owner.reference == tokenizer.reference:
        return
    wanted = {number for _, _, numbers in _entries(config) for number in numbers}
    names = {number: token for token, number in tokens(owner) if number in wanted} if wanted else {}
    found = token_ids(tokenizer, set(names.values())) if names else None
    if found is None:
        return
    moved = {number: found[token] for number, token in names.items() if token in found}
    lacking = names.keys() - moved.keys()
    lost = {
        number: f"{number} has no row in the output"
        for number in lacking
        if vocabulary.rows is not None and number >= vocabulary.rows
    }
    if lacking:
        taken = ((token, number) for token, number in tokens(tokenizer) if number in lacking)
        lost |= {number: f"{number} is {token!r} there" for token, number in taken}
    for part, key, numbers in list(_entries(config)):
        value = part[key]
        kept = [number for number in numbers if number not in lost]
        if len(kept) < len(numbers) and not (kept and isinstance(value, list)):
            substitute = _role_id(key, tokenizer)
            if substitute is None:
                first = next(number for number in numbers if number in lost)
                raise CheckpointError(
                    f"{owner}: {key} {first} in {file} is {names[first]!r}, which the tokenizer of "
                    f"{tokenizer} does not have, and {lost[first]}: choose models that agree with "
                    "`output.tokenizer`, `output.config` and `output.generation_config`"
                )
            new = [substitute]
        else:
            new = list(dict.fromkeys(moved.get(number, number) for number in kept))
        if new != numbers:
            part[key] = new if isinstance(value, list) else new[0]
            yield f"{file}: {key} {value} → {part[key]}, as in the tokenizer of {tokenizer}"


def _role_id(key: str, tokenizer: Checkpoint) -> int | None:
    """The id of the tokenizer's own token of a role: what it calls its eos_token, and so on."""
    role = _ROLE.fullmatch(key)
    if role is None:
        return None
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = (read_json(tokenizer, name) or {}).get(f"{role[1]}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            return (token_ids(tokenizer, [text]) or {}).get(text)
    return None


def _entries(config: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, list[int]]]:
    """Each key that holds ids of text tokens, the mapping it is in, and the ids."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key, value in part.items():
            numbers = value if isinstance(value, list) else [value]
            ids = [number for number in numbers if type(number) is int]
            if ids and _KEY.fullmatch(key):
                yield part, key, ids
