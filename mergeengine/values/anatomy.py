"""The tensors of a model as selectors and schedules see them: layer, depth and kinds of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from mergeengine.values.kinds import Shape, Surroundings, stack_of, stands_before


def layer_of(name: str) -> int | None:
    """The layer of a tensor: the first dotted component of its name that is an integer."""
    stack = stack_of(name)
    return None if stack is None else stack[1]


@dataclass(frozen=True)
class Anatomy:
    """A model's tensors, name to shape. What is asked of one is found out once, when first asked.

    A model may have several stacks of layers, as an encoder and a decoder. Layers are counted in
    each: a layer's depth, or its number from the end, is that in its own stack.
    """

    shapes: Mapping[str, Shape]
    _known: dict[str, TensorFacts] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of_names(cls, names: Iterable[str]) -> Anatomy:
        """Tensors of which only the names are known."""
        return cls(dict.fromkeys(names, ()))

    def tensor(self, name: str, shape: Shape | None = None) -> TensorFacts:
        """The facts of a tensor; `shape` is for one that the model itself has not."""
        facts = self._known.get(name)
        if facts is None:
            if shape is None:
                shape = self.shapes[name]
            facts = self._known[name] = TensorFacts(name, shape, self)
        return facts

    def tensors(self) -> list[TensorFacts]:
        return [self.tensor(name) for name in self.shapes]

    @cached_property
    def stacks(self) -> dict[str, int]:
        """The number of layers of each stack, by what stands before the layer in names."""
        found: dict[str, int] = {}
        for name in self.shapes:
            stack = stack_of(name)
            if stack is not None:
                found[stack[0]] = max(found.get(stack[0], 0), stack[1] + 1)
        return found

    @cached_property
    def surroundings(self) -> Surroundings:
        return Surroundings(self.shapes)


@dataclass(frozen=True, eq=False)
class TensorFacts:
    """One tensor of a model. ``layers`` counts the layers of its stack; 0 outside the layers."""

    name: str
    shape: Shape
    anatomy: Anatomy = field(repr=False)

    @cached_property
    def kinds(self) -> frozenset[str]:
        return self.anatomy.surroundings.kinds(self.name, self.shape)

    @cached_property
    def _stack(self) -> tuple[str, int] | None:
        return stack_of(self.name)

    @property
    def layer(self) -> int | None:
        return None if self._stack is None else self._stack[1]

    @property
    def layers(self) -> int:
        if self._stack is None:
            return 0
        prefix, layer = self._stack
        return max(self.anatomy.stacks.get(prefix, 0), layer + 1)

    @cached_property
    def stands_before(self) -> bool:
        """Outside the layers, and before them."""
        return self._stack is None and stands_before(self.name)

    @property
    def depth(self) -> float:
        """From 0, the first layer and what stands before it, to 1, the last and what follows.

        The only layer of a stack has depth 1.
        """
        if self._stack is None:
            return 0.0 if self.stands_before else 1.0
        return self._stack[1] / (self.layers - 1) if self.layers > 1 else 1.0


def lone(name: str, shape: Shape = ()) -> TensorFacts:
    """The facts of a tensor that stands alone, such as an example."""
    return Anatomy({name: shape}).tensor(name)
