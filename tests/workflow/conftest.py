"""What tests of whole runs share."""

import pytest

from mergeengine.execution import native


@pytest.fixture(params=["loop", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By the compiled loop, and without it."""
    if request.param == "torch":
        monkeypatch.setenv(native.SWITCH, "0")
    return str(request.param)
