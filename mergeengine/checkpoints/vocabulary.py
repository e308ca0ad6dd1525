"""What a tokenizer's files say: its size, its end-of-sequence token, and the ids of its tokens."""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import xxhash

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.sentencepiece import pieces
from mergeengine.checkpoints.small_files import SIZE_LIMIT, open_file, read_bytes, read_json
from mergeengine.checkpoints.tokenizer_json import UNUSABLE, Entry, numbered, parts_of, walk
from mergeengine.errors import CheckpointError

_LISTS = (
    "tokenizer.json", "vocab.json", "vocab.txt", "added_tokens.json", "tokenizer_config.json",
)  # fmt: skip
_SETTINGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token
# Where a piece's place is its id. Of sentencepiece.bpe.model (XLM-RoBERTa and others) it is not.
_SENTENCEPIECE = ("tokenizer.model", "spiece.model")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """``size`` is the highest id plus one. None where the files do not say."""

    size: int | None = None
    eos: str | None = None
    eos_id: int | None = None


def read_vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    """From tokenizer.json, else vocab.json, vocab.txt or a sentencepiece model, with the added
    tokens beside them."""
    files = _Files.of(checkpoint)
    size: int | None = None
    ids: dict[str, int] = {}
    if files.base is not None:
        size = 0
        wanted = _Wanted([files.eos] if files.eos is not None else [])
        try:
            for spelling, number in files.base:
                size = max(size, number + 1)
                token = wanted.find(spelling)
                if token is not None:
                    ids[token] = number
        except _OtherFormError:
            size, ids = None, {}
    if size is not None:
        size = max([size, *(number + 1 for number in files.added.values())])
    ids |= files.added
    return Vocabulary(size, files.eos, ids.get(files.eos) if files.eos is not None else None)


def vocabulary_digest(checkpoint: Checkpoint) -> str:
    """A digest of the files that ``tokens`` reads: where it is equal, so are the tokens."""
    digest = xxhash.xxh3_128()
    for name in (*_LISTS, *_SENTENCEPIECE):
        path = checkpoint.companion(name)
        digest.update(f"{name}: {0 if path is None else path.stat().st_size}\n".encode())
        if path is not None:
            with open_file(path) as file:
                while part := file.read(1 << 20):
                    digest.update(part)
    return digest.hexdigest()


def token_ids(checkpoint: Checkpoint, wanted: Collection[str]) -> dict[str, int] | None:
    """The ids of those of the ``wanted`` tokens that there are, spelt as the vocabulary has them
    (``Ġhello``, ``▁hello``). None where the files do not list tokens."""
    files = _Files.of(checkpoint)
    if files.base is None and not files.added:
        return None
    found: dict[str, int] = {}
    spelt = _Wanted(wanted)
    try:
        for spelling, number in files.base or ():
            token = spelt.find(spelling)
            if token is not None:
                found[token] = number
    except _OtherFormError:
        return None
    return found | {token: files.added[token] for token in wanted if token in files.added}


def tokens(checkpoint: Checkpoint) -> Iterator[tuple[str, int]]:
    """Every token with its id, one by one: those of the vocabulary in the order of its file, then
    the added ones. Where a token comes twice the later id holds. Nothing where the files do not
    list tokens."""
    files = _Files.of(checkpoint)
    try:
        for spelling, number in files.base or ():
            yield _plain(spelling), number
    except _OtherFormError:
        return
    yield from files.added.items()


def added_tokens(checkpoint: Checkpoint) -> dict[str, dict[str, bool]]:
    """The tokens that are cut out of a text before the algorithm sees it, as special ones are, and
    how: whether ``special``, ``normalized``, a ``single_word``, with the spaces around them."""
    return _Files.of(checkpoint).settings


def beyond_vocabulary(checkpoint: Checkpoint) -> dict[str, int]:
    """The added tokens that the vocabulary does not list too, with their ids."""
    files = _Files.of(checkpoint)
    wanted, beyond = _Wanted(files.added), dict(files.added)
    for spelling, _ in files.base or ():
        token = wanted.find(spelling)
        if token is not None:
            beyond.pop(token, None)
    return beyond


class _OtherFormError(Exception):
    """vocab.json is no flat object of ids: some tokenizers keep one per language."""


@dataclass(frozen=True, slots=True)
class _Files:
    """``base`` walks the vocabulary, ``added`` are the tokens that were added to it, ``settings``
    how those are found in a text."""

    base: Iterator[Entry] | None
    added: dict[str, int]
    settings: dict[str, dict[str, bool]]
    eos: str | None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "_Files":
        config = read_json(checkpoint, "tokenizer_config.json") or {}
        special = read_json(checkpoint, "special_tokens_map.json") or {}
        eos = _token_text(config.get("eos_token")) or _token_text(special.get("eos_token"))
        base, own = _base_vocabulary(checkpoint)
        beside = [*own, *_added_beside(config, read_json(checkpoint, "added_tokens.json") or {})]
        added = {token["content"]: int(token["id"]) for token in beside}
        added |= {token.text: token.number for token in checkpoint.added_tokens}
        settings: dict[str, dict[str, bool]] = {}
        for token in beside:
            found = {key: token[key] for key in _SETTINGS if type(token.get(key)) is bool}
            settings[token["content"]] = found | settings.get(token["content"], {})
        return cls(base, added, settings, eos)


def _base_vocabulary(
    checkpoint: Checkpoint,
) -> tuple[Iterator[Entry] | None, tuple[dict[str, Any], ...]]:
    """The walk through the vocabulary, and the added tokens of its own file."""
    data = _read_vocabulary_file(checkpoint, "tokenizer.json")
    if data is not None:
        try:
            parts = parts_of(data)
        except UNUSABLE as error:
            raise _malformed(checkpoint, "tokenizer.json", str(error)) from None
        start = parts.vocabulary
        return None if start is None else _walk(checkpoint, data, start), parts.added
    data = _read_vocabulary_file(checkpoint, "vocab.json")
    if data is not None:
        return _flat(data), ()
    data = _read_vocabulary_file(checkpoint, "vocab.txt")
    if data is not None:
        return _lines(data), ()
    for name in _SENTENCEPIECE:
        data = _read_vocabulary_file(checkpoint, name)
        if data is not None and _is_sentencepiece(data):
            return _pieces(data), ()
    return None, ()


def _walk(checkpoint: Checkpoint, data: bytes, start: int) -> Iterator[Entry]:
    """Through the vocabulary of a tokenizer.json, which begins at ``start``."""
    try:
        yield from walk(data, start)
    except ValueError as error:
        raise _malformed(checkpoint, "tokenizer.json", str(error)) from None


def _flat(data: bytes) -> Iterator[Entry]:
    try:
        yield from numbered(data, 0)
    except ValueError:
        raise _OtherFormError from None


def _lines(data: bytes) -> Iterator[Entry]:
    """Of a vocab.txt, one token a line; its number is the id."""
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n")):
        text = line.rstrip(b"\r").decode(errors="replace")
        yield json.dumps(text, ensure_ascii=False).encode(), number


def _is_sentencepiece(data: bytes) -> bool:
    """Other tokenizers call their files the same."""
    try:
        return sum(1 for _ in pieces(data)) > 0
    except ValueError:
        return False


def _pieces(data: bytes) -> Iterator[Entry]:
    for number, piece in enumerate(pieces(data)):
        yield json.dumps(piece, ensure_ascii=False).encode(), number


class _Wanted:
    """Finds tokens by their spelling; only what has escapes is parsed."""

    def __init__(self, tokens: Collection[str]) -> None:
        self._tokens = {token.encode(errors="surrogatepass"): token for token in tokens}

    def find(self, spelling: bytes) -> str | None:
        if b"\\" in spelling:
            return self._tokens.get(_plain(spelling).encode(errors="surrogatepass"))
        return self._tokens.get(spelling[1:-1])


def _plain(spelling: bytes) -> str:
    """The text that is spelt; what JSON cannot read stays as it is, and is no token's name."""
    text = spelling.decode(errors="replace")
    if "\\" not in text:
        return text[1:-1]
    try:
        return str(json.loads(text, strict=False))
    except ValueError:
        return text[1:-1]


def _read_vocabulary_file(checkpoint: Checkpoint, name: str) -> bytes | None:
    """None also where the file is too large to look into: it is copied all the same."""
    path = checkpoint.companion(name)
    if path is None or path.stat().st_size > SIZE_LIMIT:
        return None
    data = read_bytes(checkpoint, name)
    if name.endswith(".json") and data is not None and not _is_whole(data):
        raise _malformed(checkpoint, name, "it does not begin and end with a brace")
    return data


def _is_whole(data: bytes) -> bool:
    """Braces at both ends: what was cut while it was downloaded has none at its end."""
    return data[:1024].lstrip()[:1] == b"{" and data[-1024:].rstrip()[-1:] == b"}"


def _malformed(checkpoint: Checkpoint, name: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.reference.text}: {name} is not a usable JSON object ({reason}): download "
        f"it again, or correct it"
    )


def _token_text(token: object) -> str | None:
    """A special token is written as its text, or as an object that holds it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _added_beside(config: dict[str, Any], added: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The added tokens of tokenizer_config.json and added_tokens.json."""
    for text, number in added.items():
        if type(number) is int:
            yield {"content": text, "id": number}
    decoder = config.get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        content = _token_text(token)
        if content is not None and re.fullmatch(r"[0-9]{1,18}", number):
            settings = token if isinstance(token, dict) else {}
            yield {**settings, "content": content, "id": int(number)}
