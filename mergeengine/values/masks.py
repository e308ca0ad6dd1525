"""Masks: which tensors and elements of a delta are applied, weakened, or left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mergeengine.values.actions import Action, Drop, FileMask, Keep, in_order
from mergeengine.values.decisions import Decision, number_text
from mergeengine.values.positions import Position
from mergeengine.values.references import ModelReference
from mergeengine.values.selectors import Selector, first_match, unused_rules


@dataclass(frozen=True, slots=True)
class MaskEntry:
    """What happens to the tensors of one selector.

    `keep` decides a tensor alone; otherwise `actions` choose and change its elements, one after
    the other, and `scale` multiplies what is left.
    """

    selector: Selector
    scale: float = 1.0
    position: Position | None = field(default=None, compare=False)
    keep: Keep | None = None
    actions: tuple[Action, ...] = ()

    @property
    def factor(self) -> float:
        """The number that multiplies the delta: `scale`, and what makes up for dropped elements."""
        if self.keep is not None:
            return 0.0
        kept = [1.0 - action.probability for action in self.actions if isinstance(action, Drop)]
        return self.scale / kept[0] if kept else self.scale

    @property
    def text(self) -> str:
        texts = [each.action.text for each in in_order(self.actions, ())]
        if self.keep is not None:
            texts.append(self.keep.text)
        elif self.scale != 1.0 or not texts:
            texts.append(f"scale: {number_text(self.scale)}")
        return ", ".join([self.selector.text, *texts])


@dataclass(frozen=True, slots=True)
class Masks:
    """Mask entries in the order of the plan; for each tensor the first that matches holds."""

    entries: tuple[MaskEntry, ...] = ()

    def at(self, name: str) -> Decision:
        """The factor for the tensor `name`; 1.0 where no entry matches."""
        return decision_of(self.entry_at(name))

    def entry_at(self, name: str) -> MaskEntry | None:
        """The entry that decides the tensor `name`."""
        return first_match(self.entries, name)

    def files(self) -> Iterator[ModelReference]:
        """The files that entries read masks from."""
        for entry in self.entries:
            yield from (each.file for each in entry.actions if isinstance(each, FileMask))

    def unused(self, names: Iterable[str]) -> list[MaskEntry]:
        """The entries whose selector matches none of `names`."""
        return unused_rules(self.entries, names)


_UNMASKED = Decision(1.0)


def decision_of(entry: MaskEntry | None) -> Decision:
    """The factor that an entry gives; 1.0 without one."""
    if entry is None:
        return _UNMASKED
    return Decision(entry.factor, entry.position, entry.text)
