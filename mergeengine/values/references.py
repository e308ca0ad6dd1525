"""What a model reference is once read: a local path, or a repository on the hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mergeengine.values.positions import Position


@dataclass(frozen=True, slots=True)
class ModelReference:
    """One model as a plan names it: either an absolute local `path`, or `repo` on the hub."""

    text: str
    path: Path | None = None
    repo: str | None = None
    revision: str | None = None
    position: Position | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if (self.path is None) == (self.repo is None):
            raise ValueError("a model reference has either a path or a repository")

    @property
    def is_local(self) -> bool:
        return self.path is not None

    def __str__(self) -> str:
        return self.text
