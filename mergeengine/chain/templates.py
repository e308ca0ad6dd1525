"""The words of a command: ``{name}`` stands for a model's folder, ``{{name}}`` for ``{name}``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

WORD = r"[A-Za-z](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"\{{\{{(?P<literal>{WORD})\}}\}}|\{{(?P<name>{WORD})\}}")

# What a command may name besides steps and models; no step or model can have these names.
OUTPUT, SCRATCH, PYTHON, INPUT = "output", "scratch", "python", "input"
WORDS = (OUTPUT, SCRATCH, PYTHON)


def names_in(text: str) -> Iterator[str]:
    """The names that stand in a text."""
    for found in _NAME.finditer(text):
        if found["name"]:
            yield found["name"]


def filled(text: str, value: Callable[[str], str]) -> str:
    """The text with values in the place of names; braces around anything else stay."""
    return _NAME.sub(
        lambda found: value(found["name"]) if found["name"] else f"{{{found['literal']}}}", text
    )


def renamed(text: str, old: str, new: str) -> str:
    """The same template with another name in the place of ``old``."""
    return _NAME.sub(lambda found: f"{{{new}}}" if found["name"] == old else found[0], text)
