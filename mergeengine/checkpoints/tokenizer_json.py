"""Walking through a tokenizer.json without parsing it.

A large one takes ten times its size in memory once parsed (300 MB for 35 MB), which would break the
promise on memory. Added tokens are parsed, the vocabulary is walked entry by entry, merges are
reached only where the whole file has to be.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Possessive quantifiers: no backtracking state, so hostile text costs no memory.
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_WHOLE_STRING = re.compile(_STRING, re.DOTALL)
_KEY = re.compile(rb"\s*+,?+\s*+(" + _STRING + rb")\s*+:\s*+", re.DOTALL)
_ID = re.compile(rb"\s*+,?+\s*+(" + _STRING + rb")\s*+:\s*+([0-9]{1,18})(?![0-9.eE])", re.DOTALL)
_SCORED = re.compile(rb"\s*+,?+\s*+\[\s*+(" + _STRING + rb")\s*+,[^\[\]\"]++\]", re.DOTALL)
_SCALAR = re.compile(rb'[^\s,\[\]{}"]++')
_NESTING = re.compile(_STRING + rb"|[\[\]{}]", re.DOTALL)
_BRACKET = re.compile(rb"\s*+([\[\]{}])")

Entry = tuple[bytes, int]
"""A token as JSON spells it, and its id."""

UNUSABLE = (ValueError, LookupError, TypeError, OverflowError, RecursionError)
"""What the functions of this module raise for a file that is not a tokenizer.json."""


@dataclass(frozen=True, slots=True)
class Parts:
    """``added`` are the entries of ``added_tokens``, whose list begins at ``added_at``;
    ``vocabulary`` is where ``model.vocab`` begins. None where they do not come, or come later."""

    added: tuple[dict[str, Any], ...] = ()
    added_at: int | None = None
    vocabulary: int | None = None


def parts_of(data: bytes) -> Parts:
    """What there is up to the vocabulary."""
    added: tuple[dict[str, Any], ...] = ()
    added_at = None
    for key, start in _members(data, 0):
        if key == b'"added_tokens"':
            added_at, added = start, tuple(json.loads(data[start : after(data, start)]))
            for token in added:
                if type(token["content"]) is not str or int(token["id"]) < 0:
                    raise ValueError("an added token has no text or no id")
        elif key == b'"model"':
            for inner, vocabulary in _members(data, start):
                if inner == b'"vocab"':
                    return Parts(added, added_at, vocabulary)
            break
    return Parts(added, added_at)


def has_key(data: bytes, wanted: str) -> bool:
    """Whether the object has a key; all of it is walked through."""
    return any(key == json.dumps(wanted).encode() for key, _ in _members(data, 0))


def walk(data: bytes, start: int) -> Iterator[Entry]:
    """Through the vocabulary that begins at ``start``."""
    yield from (scored if data[start : start + 1] == b"[" else numbered)(data, start)


def numbered(data: bytes, start: int) -> Iterator[Entry]:
    """Walk ``{"token": id, ...}``."""
    position = _past(data, start, b"{")
    while entry := _ID.match(data, position):
        yield entry[1], int(entry[2])
        position = entry.end()
    _past(data, position, b"}")


def scored(data: bytes, start: int) -> Iterator[Entry]:
    """Walk ``[["token", score], ...]``, where the place is the id."""
    position, number = _past(data, start, b"["), 0
    while entry := _SCORED.match(data, position):
        yield entry[1], number
        number += 1
        position = entry.end()
    _past(data, position, b"]")


def _members(data: bytes, start: int) -> Iterator[tuple[bytes, int]]:
    """Each key of the object at ``start``, quoted, and where its value begins."""
    position = _past(data, start, b"{")
    while key := _KEY.match(data, position):
        yield key[1], key.end()
        position = after(data, key.end())
    _past(data, position, b"}")


def after(data: bytes, start: int) -> int:
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
