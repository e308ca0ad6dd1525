"""Telling a chain from a plan, without what reading a chain takes: most files are plans."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mergeengine.plan.files import UnreadableError, read_text

_STEPS = re.compile(r"^(?:\{.*\b)?[\"']?steps[\"']?\s*:", re.MULTILINE)


def is_chain(path: str | os.PathLike[str]) -> bool:
    """Whether a file has `steps`, by which a chain is told from a plan."""
    try:
        return _STEPS.search(read_text(Path(path))) is not None
    except UnreadableError:
        return False
