"""Which tensor of another model is meant by one of the target: by name, or by what names hide.

In this order: the plan's own names (``rename``, ``layer_map``), the same name, another spelling or
prefix of it, another layout of the same weights, and last what it is tied to. Whatever is not the
same name is told in a note.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from mergeengine.checkpoints.aliases import alias_of
from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.layouts import remake, spelled
from mergeengine.checkpoints.prefixes import Pair, find_prefixes
from mergeengine.lazy import algebra
from mergeengine.lazy.weight import Derived, Weight
from mergeengine.values.renaming import LayerMap, Rename, RoleOfName


@dataclass(frozen=True, slots=True)
class Found:
    """A tensor of the other model; ``parts`` are its names there, empty for one of zeros.

    ``how``: the same name, another one (``renamed``, ``spelled``, or the prefixes that changed),
    ``remade`` of others, ``tied``, or ``zero``: a bias that is not there.
    """

    weight: Weight
    how: str | Pair
    parts: tuple[str, ...]


class Counterparts:
    """The tensors of one model of a source, as those of the target."""

    def __init__(
        self,
        target: Checkpoint,
        other: Checkpoint,
        role: RoleOfName,
        renames: tuple[Rename, ...] = (),
        layers: LayerMap | None = None,
    ) -> None:
        self.other = other
        self.unmatched = [rule for rule in renames if role in rule.roles]
        self.target = target
        self._layers = layers
        self._found: dict[str, Found | None] = {}
        self._told: dict[str | Pair, dict[str, str]] = {}
        self._names: dict[str, str] = {}  # as the plan calls it -> as it is stored
        self.clashes: list[str] = []
        self._rename(self.unmatched[:])

    def _rename(self, rules: list[Rename]) -> None:
        if not rules:
            self._names = {name: name for name in self.other.tensors}
            return
        for own in self.other.tensors:
            name = own
            for rule in rules:
                renamed = rule.apply(own)
                if renamed is not None:
                    name = renamed
                    if rule in self.unmatched:
                        self.unmatched.remove(rule)
                    break
            if name in self._names:
                self.clashes.append(f"{own} and {self._names[name]} are both called {name}")
            self._names[name] = own

    def gets_nothing(self, name: str) -> bool:
        """Whether the plan's ``layer_map`` leaves a tensor of the target out."""
        return self._layers is not None and self._layers.source_name(name) is None

    def find(self, tensor: Weight) -> Weight | None:
        """What corresponds to a tensor of the target; None where nothing does."""
        if self._layers is None:
            own = self._names.get(tensor.name)
            if own == tensor.name:  # nearly always
                return self.other.tensors[own]
        found = self._resolved(tensor.name)
        if found is None:
            return None
        if found.how != "same":
            called = found.weight.name if found.parts else "zero"
            self._told.setdefault(found.how, {})[tensor.name] = called
        return found.weight

    def missing_bias(self, tensor: Weight) -> Weight | None:
        """A bias that the model has not, though it has the weight beside it: zeros."""
        stem, _, last = tensor.name.rpartition(".")
        beside = self.target.tensors.get(f"{stem}.weight")
        if last != "bias" or beside is None or self._resolved(beside.name) is None:
            return None
        self._told.setdefault("zero", {})[tensor.name] = "zero"
        zeros = algebra.constant(0.0, tensor.shape)
        return Derived(str(self.other), tensor.name, tensor.dtype, zeros)

    def extras(self) -> Iterator[tuple[str, Weight]]:
        """What no tensor of the target corresponds to, under the name it would have there."""
        free = [name for name in self._names if name not in self.target.tensors]
        if not free:
            return
        used: set[str] = set()
        for name in self.target.tensors:
            found = self._resolved(name)
            used.update(found.parts if found is not None else ())
        for name in free:
            own = self._names[name]
            if own in used or (self._layers is not None and not self._layers.uses(own)):
                continue
            yield self._in_target(name), self.other.tensors[own]

    def notes(self) -> Iterator[tuple[str, list[str]]]:
        """What was found under other names: a sentence, and what it is said of."""
        for how, names in self._told.items():
            lines = [f"{name} ← {own}" for name, own in names.items()]
            if isinstance(how, tuple):
                before, instead = (f"`{each}`" if each else "nothing" for each in how)
                yield (
                    f"tensors have another prefix in {self.other}: {before} of the target is "
                    f"{instead} there",
                    lines[:1] + [f"... and {len(lines) - 1} more"] * (len(lines) > 1),
                )
            else:
                yield _SENTENCES[how].format(self.other), lines

    def _resolved(self, name: str) -> Found | None:
        if name not in self._found:
            self._found[name] = self._look(name)
        return self._found[name]

    def _look(self, name: str) -> Found | None:
        shape = self.target.tensors[name].shape
        sought = name if self._layers is None else self._layers.source_name(name)
        if sought is None:
            return None
        tensors = self.other.tensors
        if sought in self._names:
            own = self._names[sought]
            same = own == name
            return Found(tensors[own], "same" if same else "renamed", (own,))
        for called, how in self._called(sought):
            if called in self._spelled:
                own = self._spelled[called]
                return Found(tensors[own], how, (own,))
        for called, _ in ((spelled(sought), ""), *self._called(sought)):
            remade = remake(called, shape, self._by_spelling, self._target_shapes(name, called))
            if remade is not None:
                parts = tuple(self._spelled[part] for part in remade.parts)
                return Found(remade.weight(self._by_spelling), "remade", parts)
        alias = alias_of(self.other, sought, shape)
        if alias is not None:
            return Found(tensors[alias], "tied", (alias,))
        return None

    def _called(self, name: str) -> Iterator[tuple[str, str | Pair]]:
        """What a name of the target may be in the other model."""
        plain = spelled(name)
        if plain in self._spelled:
            yield plain, "spelled"
        for before, instead in self._prefixes:
            if plain.startswith(before):
                yield instead + plain[len(before) :], (before, instead)

    def _target_shapes(self, name: str, called: str) -> dict[str, tuple[int, ...]]:
        """Shapes of what lies beside a tensor of the target, by the names of the other model."""
        stem, there = name.rpartition(".")[0], called.rpartition(".")[0]
        own, other = stem.rpartition(".")[0], there.rpartition(".")[0]
        beside = {called: self.target.tensors[name].shape}
        for each in self._siblings.get(own, ()):
            beside[other + each[len(own) :]] = self.target.tensors[each].shape
        return beside

    @cached_property
    def _siblings(self) -> dict[str, list[str]]:
        """Names of the target by the module that their own module lies in."""
        found: dict[str, list[str]] = {}
        for name in self.target.tensors:
            found.setdefault(name.rpartition(".")[0].rpartition(".")[0], []).append(name)
        return found

    @cached_property
    def _spelled(self) -> dict[str, str]:
        """Names in their newer spelling, where one tensor alone has it -> as it is stored."""
        found: dict[str, list[str]] = {}
        for name, own in self._names.items():
            found.setdefault(spelled(name), []).append(own)
        return {name: owns[0] for name, owns in found.items() if len(owns) == 1}

    @cached_property
    def _by_spelling(self) -> dict[str, Weight]:
        return {name: self.other.tensors[own] for name, own in self._spelled.items()}

    @cached_property
    def _prefixes(self) -> tuple[Pair, ...]:
        target = {spelled(name): each.shape for name, each in self.target.tensors.items()}
        theirs = {name: self.other.tensors[own].shape for name, own in self._spelled.items()}
        return find_prefixes(
            {name: shape for name, shape in target.items() if name not in theirs},
            {name: shape for name, shape in theirs.items() if name not in target},
        )

    def _in_target(self, name: str) -> str:
        """What a tensor that the target lacks would be called there."""
        for before, instead in self._prefixes:
            if instead and name.startswith(instead):
                return before + name[len(instead) :]
        return name


_SENTENCES = {
    "renamed": "tensors are called otherwise in {}, as the plan says",
    "spelled": "tensors have an older name in {}",
    "remade": "tensors are laid out otherwise in {}",
    "tied": "taken from tied weights in {}",
    "zero": "biases are not in {}, where they are zero",
}
