"""Masks: which tensors of a delta are applied, weakened, or left out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from mergeengine.values.anatomy import TensorFacts
from mergeengine.values.decisions import Decision
from mergeengine.values.parameters import Form, Number
from mergeengine.values.positions import Position
from mergeengine.values.selectors import Selector, first_match, unused_rules

WHOLE = Number(1.0)


@dataclass(frozen=True, slots=True)
class MaskEntry:
    """What happens to the tensors of one selector.

    Each field after `selector` is an action; several in one entry apply in the order of the
    fields here, whatever their order in the plan.
    """

    selector: Selector
    scale: Form = WHOLE
    position: Position | None = field(default=None, compare=False)

    @property
    def text(self) -> str:
        return f"{self.selector.text}, scale: {self.scale.text}"


@dataclass(frozen=True, slots=True)
class Masks:
    """Mask entries in the order of the plan; for each tensor the first that matches holds."""

    entries: tuple[MaskEntry, ...] = ()

    def at(self, tensor: TensorFacts) -> Decision:
        """The factor for a tensor; 1.0 where no entry matches."""
        entry = first_match(self.entries, tensor)
        if entry is None:
            return Decision(1.0)
        decided = entry.scale.at(tensor, "scale", entry.position)
        return replace(decided, text=f"{entry.selector.text}, {decided.text}")

    def unused(self, tensors: Iterable[TensorFacts]) -> list[MaskEntry]:
        """The entries whose selector matches none of `tensors`."""
        return unused_rules(self.entries, tensors)
