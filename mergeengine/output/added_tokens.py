"""The tokenizer of a union: a model's, with tokens that it lacked.

All of them are put into the vocabulary of tokenizer.json, where each has its id. Those that a
tokenizer has beside its vocabulary are put beside this one too, with the same settings; no merges
are made for the others, so that texts are encoded as before wherever these do not come.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mergeengine.checkpoints.checkpoint import AddedToken, Checkpoint
from mergeengine.checkpoints.small_files import read_bytes, read_json
from mergeengine.checkpoints.tokenizer_json import UNUSABLE, after, has_key, parts_of, walk
from mergeengine.checkpoints.vocabulary import beyond_vocabulary
from mergeengine.errors import CheckpointError
from mergeengine.output.companion_files import (
    Companion,
    CompanionSet,
    Spliced,
    copies,
    json_bytes,
)

_TOKENIZER, _CONFIG = "tokenizer.json", "tokenizer_config.json"
# What older tokenizers are made of: without the new tokens they would contradict tokenizer.json.
_OTHER_LISTS = (
    "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "tokenizer.model",
    "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
_UNLIKELY = -1e6  # a score: found only where nothing else is


def with_added_tokens(model: Checkpoint, names: Iterable[str]) -> CompanionSet:
    """The files ``names`` of a model's tokenizer with its ``added_tokens``.

    CheckpointError where it has no tokenizer.json to put them into.
    """
    path, data = model.companion(_TOKENIZER), read_bytes(model, _TOKENIZER)
    if path is None or data is None:
        raise CheckpointError(
            f"{model}: {len(model.added_tokens)} tokens must be added to its tokenizer, which has "
            f"no {_TOKENIZER}: write one with transformers (AutoTokenizer.from_pretrained(...)"
            ".save_pretrained(...)), or choose another tokenizer with `output.tokenizer`"
        )
    try:
        files = [Companion(_TOKENIZER, _extended(path, data, model))]
    except UNUSABLE as error:
        raise CheckpointError(f"{model}: no tokens can be added to {_TOKENIZER}: {error}") from None
    config = read_json(model, _CONFIG)
    decoder = (config or {}).get("added_tokens_decoder")
    if config is not None and isinstance(decoder, dict):
        more = {
            str(token.number): {"content": token.text, **_settings(token.settings)}
            for token in model.added_tokens
            if token.settings is not None
        }
        files.append(
            Companion(_CONFIG, json_bytes(config | {"added_tokens_decoder": decoder | more}))
        )
    names = list(names)
    lost = [name for name in names if name in _OTHER_LISTS]
    made = {file.name for file in files}
    files += copies(model, (name for name in names if name not in (*lost, *made)))
    note = f"left out, since {_TOKENIZER} has tokens that they lack: {', '.join(lost)}"
    return CompanionSet(tuple(files), (note,) if lost else ())


def _extended(path: Path, data: bytes, model: Checkpoint) -> Spliced:
    """tokenizer.json with the new tokens; ValueError where they cannot be put into it."""
    parts = parts_of(data)
    if parts.vocabulary is None:
        raise ValueError("it has no vocabulary")
    beside = [_entry(token) for token in model.added_tokens if token.settings is not None]
    inserted = []
    if parts.added_at is not None:
        inserted.append(_appended(data, parts.added_at, beside))
    elif has_key(data, "added_tokens"):
        raise ValueError("`added_tokens` stands behind `model`")
    else:
        text = f'"added_tokens": [{", ".join(beside)}], '
        inserted.append((data.index(b"{") + 1, text.encode()))
    count = sum(1 for _ in walk(data, parts.vocabulary))
    missing = sorted(beyond_vocabulary(model).items(), key=lambda item: item[1])
    in_list = data[parts.vocabulary : parts.vocabulary + 1] == b"["
    entries = list(_listed(missing, count) if in_list else _numbered(missing))
    inserted.append(_appended(data, parts.vocabulary, entries))
    return Spliced(path, tuple(sorted(inserted)))


def _appended(data: bytes, start: int, entries: list[str]) -> tuple[int, bytes]:
    """Entries at the end of the list or object that begins at ``start``, and where that is."""
    end = after(data, start) - 1
    text = ", ".join(entries)
    empty = not data[start + 1 : end].strip()
    return end, (text if empty or not text else f", {text}").encode(errors="surrogatepass")


def _numbered(tokens: Iterable[tuple[str, int]]) -> Iterator[str]:
    return (f"{_quoted(text)}: {number}" for text, number in tokens)


def _listed(tokens: Iterable[tuple[str, int]], count: int) -> Iterator[str]:
    """Of a list, in which a token's place is its id, and which gives every token a score."""
    for place, (text, number) in enumerate(tokens, start=count):
        if number != place:
            raise ValueError(f"the id {place} is that of no token, and the next one's is {number}")
        yield f"[{_quoted(text)}, {_UNLIKELY}]"


def _entry(token: AddedToken) -> str:
    settings = _settings(token.settings or {})
    return json.dumps({"id": token.number, "content": token.text, **settings})


def _settings(given: Mapping[str, bool]) -> dict[str, Any]:
    special = given.get("special", False)
    return {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": not special,
        "special": special,
        **given,
    }


def _quoted(text: str) -> str:
    return json.dumps(text)
