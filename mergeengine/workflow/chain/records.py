"""``<chain>.lock``: what the chain's models were, and what each step was made of. Made for git.

It is a plan's lock with a part `steps` of its own. No times, no hosts, no absolute paths.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mergeengine.errors import VerificationError
from mergeengine.output.lock import PlanLock, read_lock, write_lock

Parts = Mapping[str, Any]
"""What decides a step's output: its kind and plan or command, and what it takes."""


@dataclass(frozen=True, slots=True)
class Record:
    """A step that was done: what it was made of, the identity in the output's manifest, and a
    digest of what is in it, by which the steps that follow know it."""

    parts: Parts
    identity: str
    content: str


def read_records(path: Path) -> tuple[PlanLock, dict[str, Record]]:
    """The lock of a chain; both are empty where there is none."""
    lock = read_lock(path) or PlanLock()
    steps = lock.substituted.get("steps", {})
    try:
        records = {name: Record(**entry) for name, entry in steps.items()}
        if not all(isinstance(record.parts, dict) for record in records.values()):
            raise TypeError("a mapping was expected")
    except TypeError as error:
        raise VerificationError(
            f"{path}: not the lock of a chain ({error}). Restore it from version control, or "
            "delete it: outputs that are there are then taken where they are what would be made"
        ) from error
    return lock, records


def write_records(
    path: Path,
    models: Mapping[str, str],
    records: Mapping[str, Record],
    substituted: Mapping[str, Any],
) -> bool:
    """Write the lock of a chain; False where it says the same already."""
    steps = {name: asdict(record) for name, record in records.items()}
    return write_lock(path, PlanLock(models, {**substituted, "steps": steps}))


def differences(old: Parts, new: Parts) -> list[str]:
    """What changed, in words: ``the plan``, ``finetune.sh``, ``m3_ft``."""
    if old.get("kind") != new.get("kind"):
        return [f"it was {_KINDS.get(old.get('kind', ''), 'another kind of step')}"]
    found = [f"its {_NAMES[part]} changed" for part in _NAMES if old.get(part) != new.get(part)]
    for part, what in (("files", "the file "), ("models", "the model "), ("steps", "")):
        before, now = old.get(part, {}), new.get(part, {})
        for name in sorted({*before, *now}):
            if name not in before:
                found.append(f"{what}{name} is new to it")
            elif name not in now:
                found.append(f"{what}{name} is no longer used")
            elif before[name] != now[name]:
                found.append(f"{what}{name} changed")
    return found


_KINDS = {"merge": "a merge", "command": "a command", "evaluation": "an evaluation"}
_NAMES = {
    "plan": "plan",
    "command": "command",
    "env": "environment",
    "tasks": "list of tasks",
    "arguments": "arguments",
    "version": "way of computing",
}
