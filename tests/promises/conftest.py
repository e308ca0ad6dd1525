"""What all tests of the promises share."""

import os

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing guards against power failures, which no test here can make, and takes most time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
