"""How much work Python does, without a clock: a number that other load does not change."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def steps(function: Callable[[], object]) -> int:
    """Lines run and calls made: a loop counts even where it calls nothing."""
    count = 0

    def hook(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event in ("call", "line")
        return hook

    before = sys.gettrace()
    sys.settrace(hook)
    try:
        function()
    finally:
        sys.settrace(before)
    return count
