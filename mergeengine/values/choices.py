"""A word or switch of a plan, which is the same for every tensor."""

from __future__ import annotations

from dataclasses import dataclass, field

from mergeengine.values.positions import Position


@dataclass(frozen=True, slots=True)
class Choice:
    """What stands under the key, and where."""

    key: str
    value: bool | str
    position: Position | None = field(default=None, compare=False)

    @property
    def text(self) -> str:
        """``normalize: true``"""
        shown = self.value if isinstance(self.value, str) else str(self.value).lower()
        return f"{self.key}: {shown}"
