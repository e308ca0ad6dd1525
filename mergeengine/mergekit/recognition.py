"""Telling a mergekit configuration from a plan, by its text alone."""

from __future__ import annotations

import re

_METHOD = re.compile(r"^(?:\{.*\b)?[\"']?merge_method[\"']?\s*:", re.MULTILINE)
_VERSION = re.compile(r"^[\"']?version[\"']?\s*:", re.MULTILINE)
_SEPARATOR = re.compile(r"^---(?=\s|$)", re.MULTILINE)


def is_config(text: str) -> bool:
    """Whether a text has `merge_method`, and no `version`, which plans and chains begin with."""
    return _METHOD.search(text) is not None and _VERSION.search(text) is None


def is_several(text: str) -> bool:
    """Whether a text is of several configurations, which together are a chain."""
    return is_config(text) and sum(map(bool, map(_METHOD.search, _SEPARATOR.split(text)))) > 1
