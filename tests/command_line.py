"""The command line as tests call it, in their own process."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def outcomes(self) -> dict[str, str]:
        """What became of each step of a chain; of `--format json`, as all below."""
        return {step["id"]: step["outcome"] for step in self.json["steps"]}

    @property
    def made(self) -> list[str]:
        return [step for step, outcome in self.outcomes.items() if outcome == "made"]

    @property
    def states(self) -> dict[str, str]:
        return {step["id"]: step["state"] for step in self.json["steps"]}

    @property
    def reasons(self) -> dict[str, str]:
        return {step["id"]: step["reason"] for step in self.json["steps"]}


Command = Callable[..., Ended]
