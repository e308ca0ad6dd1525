"""Which tests need the compiled loop: they are skipped where there is none, and fail where there is
one that is refused, as one that is older than its sources is."""

import os

import pytest

from mergeengine.execution import native


def _why_not() -> str:
    """Why there is no loop; empty where there is one, or where one should have been loaded."""
    if os.environ.get(native.SWITCH) == "0":
        return f"{native.SWITCH}=0 leaves everything to torch"
    if native.library() is None and native.refused() is None:
        return "the compiled loop was not built: there was no C compiler"
    return ""


needs_loop = pytest.mark.skipif(bool(_why_not()), reason=_why_not())
