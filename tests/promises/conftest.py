"""What all tests of the promises share."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing guards against power failures, which no test here can make, and takes most time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Emptied at once: what is written here is large."""
    yield tmp_path
    shutil.rmtree(tmp_path)
