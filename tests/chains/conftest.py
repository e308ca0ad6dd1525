"""A lineage in the current folder, and a way to call the command line."""

from pathlib import Path

import pytest
from chain_files import lineage
from command_line import Command, Ended


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with m1, m2, m3 and tune.py."""
    lineage(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(command: Command) -> Command:
    """`run chain.yaml --allow-commands --format json`, and what else is given."""

    def with_options(*arguments: str) -> Ended:
        return command("run", "chain.yaml", "--allow-commands", "--format", "json", *arguments)

    return with_options
