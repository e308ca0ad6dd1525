"""``<plan>.lock``: what each model reference of a plan was when it was last run. Made for git.

Sorted, without times or hosts, references as written. A hub reference keeps its locked commit
until the lock is updated; a local one is pinned anew when it has changed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeengine.errors import VerificationError
from mergeengine.output.workspace import output_error

_VERSION = 1
_PARTS = ("vars", "environment", "includes", "tokens", "steps")


@dataclass(frozen=True, slots=True)
class PlanLock:
    """Reference as written -> its content: ``repo@commit`` or a sampled digest.

    ``substituted`` is what the plan took from elsewhere: ``vars``, ``environment``, ``includes``,
    and the ids of ``tokens``, by the model whose tokenizer has them; and of a chain its ``steps``.
    """

    models: Mapping[str, str] = field(default_factory=dict)
    substituted: Mapping[str, Any] = field(default_factory=dict)

    def commit_of(self, reference: str) -> str | None:
        """The locked commit of a hub reference."""
        content = self.models.get(reference)
        if content is None or content.startswith("xxh3:"):
            return None
        return content.rpartition("@")[2]

    def tokens(self, model: str) -> Mapping[str, int]:
        """The ids of tokens that were found in a model's tokenizer."""
        found: Mapping[str, int] = self.substituted.get("tokens", {}).get(model, {})
        return found

    def to_bytes(self) -> bytes:
        document = {"version": _VERSION, "models": dict(self.models), **self.substituted}
        return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def lock_path(plan_file: Path) -> Path:
    return plan_file.with_suffix(".lock")


def read_lock(path: Path) -> PlanLock | None:
    """The lock at ``path``; None where there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise VerificationError(
            f"{path}: not a readable lock ({error}). Restore it from version control, or delete "
            "it to pin everything anew"
        ) from error
    models = document.get("models") if isinstance(document, dict) else None
    if (
        not isinstance(models, dict)
        or document.get("version") != _VERSION
        or not all(isinstance(content, str) for content in models.values())
        or not all(isinstance(document.get(part, {}), dict) for part in _PARTS)
    ):
        raise VerificationError(
            f"{path}: not a lock of this version of mergeengine. Delete it to pin everything anew"
        )
    return PlanLock(models, {part: document[part] for part in _PARTS if part in document})


def write_lock(path: Path, lock: PlanLock) -> bool:
    """Write a lock whole or not at all; False where it already says the same."""
    data = lock.to_bytes()
    try:
        if path.exists() and path.read_bytes() == data:
            return False
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise output_error(path, error) from error
    return True
