"""Masks: which tensors and elements of a delta are applied, weakened, or left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mergeengine.values.actions import Action, Drop, FileMask, Keep, in_order
from mergeengine.values.anatomy import TensorFacts
from mergeengine.values.decisions import Decision
from mergeengine.values.parameters import Form, Number
from mergeengine.values.positions import Position
from mergeengine.values.references import ModelReference
from mergeengine.values.selectors import Selector, first_match, unused_rules

WHOLE = Number(1.0)


@dataclass(frozen=True, slots=True)
class MaskEntry:
    """What happens to the tensors of one selector.

    `keep` decides a tensor alone; otherwise `actions` choose and change its elements, one after
    the other, and `scale` multiplies what is left.
    """

    selector: Selector
    scale: Form = WHOLE
    position: Position | None = field(default=None, compare=False)
    keep: Keep | None = None
    actions: tuple[Action, ...] = ()

    def at(self, tensor: TensorFacts) -> Decision:
        """The number that multiplies the delta: `scale`, and what makes up for dropped elements."""
        if self.keep is not None:
            return Decision(0.0, self.position, self.text)
        scale = self.scale.at(tensor, "scale", self.position)
        kept = [1.0 - action.probability for action in self.actions if isinstance(action, Drop)]
        value = scale.value / kept[0] if kept else scale.value
        return Decision(value, scale.position, self._told(scale.text))

    def _told(self, scale: str) -> str:
        texts = [each.action.text for each in in_order(self.actions, ())]
        if self.keep is not None:
            texts.append(self.keep.text)
        elif self.scale != WHOLE or not texts:
            texts.append(f"scale: {scale}" if not scale.startswith("scale") else scale)
        return ", ".join([self.selector.text, *texts])

    @property
    def text(self) -> str:
        return self._told(self.scale.text)


@dataclass(frozen=True, slots=True)
class Masks:
    """Mask entries in the order of the plan; for each tensor the first that matches holds."""

    entries: tuple[MaskEntry, ...] = ()

    def at(self, tensor: TensorFacts) -> Decision:
        """The factor for a tensor; 1.0 where no entry matches."""
        return decision_of(self.entry_at(tensor), tensor)

    def entry_at(self, tensor: TensorFacts) -> MaskEntry | None:
        """The entry that decides a tensor."""
        return first_match(self.entries, tensor)

    def files(self) -> Iterator[ModelReference]:
        """The files that entries read masks from."""
        for entry in self.entries:
            yield from (each.file for each in entry.actions if isinstance(each, FileMask))

    def unused(self, tensors: Iterable[TensorFacts]) -> list[MaskEntry]:
        """The entries whose selector matches none of `tensors`."""
        return unused_rules(self.entries, tensors)


_UNMASKED = Decision(1.0)


def decision_of(entry: MaskEntry | None, tensor: TensorFacts) -> Decision:
    """The factor that an entry gives a tensor; 1.0 without one."""
    return _UNMASKED if entry is None else entry.at(tensor)
