"""What is asked of a chain, and what became of its steps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from mergeengine.chain.chain import Step
from mergeengine.errors import MergeEngineError
from mergeengine.workflow.chain.evaluation import Results
from mergeengine.workflow.produce import Progress
from mergeengine.workflow.settings import Settings

Outcome = Literal["made", "reused", "fused", "removed", "failed", "awaited", "skipped", "not asked"]


@dataclass(frozen=True, slots=True)
class Options:
    """What of a chain is done, and how.

    ``steps``: these and what they need, all without it. ``start``: this step and those that follow
    from it; what comes before is taken as it is. ``force``: what was chosen is made anew, whatever
    is there. ``keep_going``: a failure stops only the steps that need the one that failed.
    """

    steps: tuple[str, ...] = ()
    start: str | None = None
    force: bool = False
    keep_going: bool = False
    allow_commands: bool = False
    locked: bool = False
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of a step. ``bytes`` is the size of its output, where there is one; ``removed``
    says that it was an intermediate and is gone again."""

    step: Step
    outcome: Outcome
    reason: str
    seconds: float = 0.0
    bytes: int = 0
    measured: Results = field(default_factory=dict)
    removed: bool = False

    def document(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "id": self.step.id,
            "kind": self.step.kind,
            "outcome": self.outcome,
            "reason": self.reason,
            "output": str(self.step.output),
            "removed": self.removed,
            "seconds": round(self.seconds, 3),
            "bytes": self.bytes,
            "measured": self.measured,
        }


@dataclass(frozen=True, slots=True)
class ChainResult:
    """What became of every step, in the chain's order; ``error`` is the first failure."""

    steps: tuple[StepResult, ...]
    error: MergeEngineError | None = None


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told what happens: a step that begins, and why; a program's line; how it ended."""

    begin: Callable[[Step, str], None] = lambda step, reason: None
    line: Callable[[str, str], None] = lambda step, text: None
    end: Callable[[StepResult], None] = lambda result: None
    warn: Callable[[str], None] = lambda text: None
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a run would do with a step, and why."""

    step: Step
    state: str
    reason: str
    bytes: int
    measured: Results

    def document(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "id": self.step.id,
            "kind": self.step.kind,
            "state": self.state,
            "reason": self.reason,
            "output": str(self.step.output),
            "bytes": self.bytes,
            "measured": self.measured,
        }
