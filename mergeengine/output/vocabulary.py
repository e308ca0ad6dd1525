"""What a tokenizer's files say of its size and its end-of-sequence token.

A large tokenizer.json takes ten times its size in memory once parsed (300 MB for 35 MB),
which would break the promise on memory. It is scanned instead: the added tokens are parsed,
the vocabulary is walked entry by entry, merges are never reached.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.errors import CheckpointError
from mergeengine.output.companion_files import SIZE_LIMIT, read_bytes, read_json

# Possessive quantifiers: no backtracking state, so hostile text costs no memory.
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_WHOLE_STRING = re.compile(_STRING, re.DOTALL)
_KEY = re.compile(rb"\s*+,?+\s*+(" + _STRING + rb")\s*+:\s*+", re.DOTALL)
_ID = re.compile(rb"\s*+,?+\s*+(" + _STRING + rb")\s*+:\s*+([0-9]{1,18})(?![0-9.eE])", re.DOTALL)
_SCORED = re.compile(rb"\s*+,?+\s*+\[\s*+(" + _STRING + rb")\s*+,[^\[\]\"]++\]", re.DOTALL)
_SCALAR = re.compile(rb'[^\s,\[\]{}"]++')
_NESTING = re.compile(_STRING + rb"|[\[\]{}]", re.DOTALL)
_BRACKET = re.compile(rb"\s*+([\[\]{}])")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """``size`` is the highest id plus one. None where the files do not say (sentencepiece)."""

    size: int | None = None
    eos: str | None = None
    eos_id: int | None = None


def read_vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    """From tokenizer.json, else vocab.json or vocab.txt, with the added tokens beside them."""
    config = read_json(checkpoint, "tokenizer_config.json") or {}
    special = read_json(checkpoint, "special_tokens_map.json") or {}
    eos = _token_text(config.get("eos_token")) or _token_text(special.get("eos_token"))
    added = _added_tokens(config, read_json(checkpoint, "added_tokens.json") or {})
    size, ids = _base_vocabulary(checkpoint, eos)
    if size is not None:
        size = max([size, *(identifier + 1 for identifier in added.values())])
    ids = ids | added
    return Vocabulary(size, eos, ids.get(eos) if eos is not None else None)


def _base_vocabulary(checkpoint: Checkpoint, eos: str | None) -> tuple[int | None, dict[str, int]]:
    """Size, and the ids of the added tokens and of ``eos``."""
    data = _read_vocabulary_file(checkpoint, "tokenizer.json")
    if data is not None:
        try:
            return _scan_tokenizer(data, eos)
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
            raise _malformed(checkpoint, "tokenizer.json", str(error)) from None
    data = _read_vocabulary_file(checkpoint, "vocab.json")
    if data is not None:
        try:
            return _scan_ids(data, 0, eos)
        except ValueError:
            return None, {}  # not a flat object of ids: some tokenizers keep one per language
    data = _read_vocabulary_file(checkpoint, "vocab.txt")
    if data is None:
        return None, {}
    lines = [line.rstrip(b"\r") for line in data.removesuffix(b"\n").split(b"\n")]
    wanted = (eos or "").encode(errors="replace")
    return len(lines), {eos: lines.index(wanted)} if eos and wanted in lines else {}


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


def _added_tokens(config: dict[str, Any], added: dict[str, Any]) -> dict[str, int]:
    ids = {text: number for text, number in added.items() if type(number) is int}
    decoder = config.get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        text = _token_text(token)
        if text is not None and re.fullmatch(r"[0-9]{1,18}", number):
            ids[text] = int(number)
    return ids


def _scan_tokenizer(data: bytes, eos: str | None) -> tuple[int | None, dict[str, int]]:
    """Size and ids of a tokenizer.json: its ``added_tokens`` and its ``model.vocab``."""
    size: int | None = None
    added: dict[str, int] = {}
    ids: dict[str, int] = {}
    for key, start in _members(data, 0):
        if key == b'"added_tokens"':
            for token in json.loads(data[start : _after(data, start)]):
                added[token["content"]] = int(token["id"])
        elif key == b'"model"':
            for inner, vocabulary in _members(data, start):
                if inner == b'"vocab"':
                    listed = data[vocabulary : vocabulary + 1] == b"["
                    size, ids = (_scan_scored if listed else _scan_ids)(data, vocabulary, eos)
                    break
            break
    if size is not None:
        size = max([size, *(number + 1 for number in added.values())])
    return size, ids | added


def _scan_ids(data: bytes, start: int, wanted: str | None) -> tuple[int, dict[str, int]]:
    """Walk ``{"token": id, ...}``."""
    spellings, found, size = _spellings(wanted), {}, 0
    position = _past(data, start, b"{")
    while entry := _ID.match(data, position):
        number = int(entry[2])
        size = max(size, number + 1)
        if entry[1] in spellings and wanted is not None:
            found[wanted] = number
        position = entry.end()
    _past(data, position, b"}")
    return size, found


def _scan_scored(data: bytes, start: int, wanted: str | None) -> tuple[int, dict[str, int]]:
    """Walk ``[["token", score], ...]``, where the place is the id."""
    spellings, found, size = _spellings(wanted), {}, 0
    position = _past(data, start, b"[")
    while entry := _SCORED.match(data, position):
        if entry[1] in spellings and wanted is not None:
            found[wanted] = size
        size += 1
        position = entry.end()
    _past(data, position, b"]")
    return size, found


def _spellings(token: str | None) -> tuple[bytes, ...]:
    """How JSON writers spell the token: as it is, or in ASCII with escapes."""
    if token is None:
        return ()
    plain = json.dumps(token, ensure_ascii=False).encode(errors="surrogatepass")
    return plain, json.dumps(token).encode()


def _members(data: bytes, start: int) -> Iterator[tuple[bytes, int]]:
    """Each key of the object at ``start``, quoted, and where its value begins."""
    position = _past(data, start, b"{")
    while key := _KEY.match(data, position):
        yield key[1], key.end()
        position = _after(data, key.end())
    _past(data, position, b"}")


def _after(data: bytes, start: int) -> int:
    """Where the value that begins at ``start`` ends."""
    if scalar := _WHOLE_STRING.match(data, start) or _SCALAR.match(data, start):
        return scalar.end()
    depth = 0
    for token in _NESTING.finditer(data, start):
        if token[0] in b"[{":
            depth += 1
        elif token[0] in b"]}":
            depth -= 1
            if depth == 0:
                return token.end()
    raise ValueError(f"the value at byte {start} does not end")


def _past(data: bytes, position: int, bracket: bytes) -> int:
    """The position behind the bracket that must come next."""
    found = _BRACKET.match(data, position)
    if found is None or found[1] != bracket:
        raise ValueError(f"expected {bracket.decode()} or an entry at byte {position}")
    return found.end()
