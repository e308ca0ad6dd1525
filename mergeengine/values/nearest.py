"""Suggestions for words that are not known."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str], limit: int = 1, cutoff: float = 0.6) -> list[str]:
    """The known words most like `word`, best first; none where nothing is like it."""
    return get_close_matches(word, list(known), n=limit, cutoff=cutoff)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean `scaling`?`` for the end of a sentence, or an empty text."""
    found = nearest(word, known)
    return f"; did you mean `{found[0]}`?" if found else ""
