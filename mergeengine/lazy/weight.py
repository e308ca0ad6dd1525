"""A named tensor of a model: stored as it is, or made of what is stored.

A file may hold a tensor transposed, in parts, under another name, or in 8 bits with scales beside
it. What is merged is the tensor that the model means: an expression over what lies in the file.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mergeengine.lazy import algebra
from mergeengine.lazy.dtypes import DType
from mergeengine.lazy.nodes import Node, Shape, walk
from mergeengine.lazy.stored import Stored


@dataclass(frozen=True, slots=True)
class Quantised:
    """How a file holds a weight in 8 bits: ``weight`` · ``scale``, one scale for every ``factors``
    elements in each dimension."""

    weight: Stored
    scale: Stored
    factors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Derived:
    """A tensor that its checkpoint does not store as it is.

    ``dtype`` is that of its values: what it is written in where the plan says nothing. ``source``
    is the reference of the checkpoint, as in ``Stored``. ``added`` is the formula of what was added
    to another tensor, where that is how this is made; ``quantised`` is there where it lies in its
    file in 8 bits.
    """

    source: str
    name: str
    dtype: DType
    node: Node
    added: str | None = None
    quantised: Quantised | None = None

    @property
    def shape(self) -> Shape:
        return self.node.shape

    @property
    def numel(self) -> int:
        return self.node.numel

    @property
    def nbytes(self) -> int:
        """Bytes of its values, which need not be those it takes in the file."""
        return self.numel * self.dtype.itemsize


Weight = Stored | Derived


def node_of(weight: Weight) -> Node:
    """The expression that a weight stands for."""
    return weight.node if isinstance(weight, Derived) else algebra.stored(weight)


def called(name: str, weight: Weight) -> Weight:
    """The same tensor under another name."""
    if weight.name == name:
        return weight
    return Derived(weight.source, name, weight.dtype, node_of(weight))


def difference(ft: Weight, base: Weight) -> Node:
    """``ft - base``. Where ``ft`` is made by adding to ``base``, it is what was added, exactly,
    instead of a sum of which its first term is taken away again."""
    node, below = node_of(ft), node_of(base)
    added = _added(node, below) if isinstance(ft, Derived) else None  # few are
    return algebra.elementwise("sub", node, below) if added is None else added


def added_to(ft: Weight, base: Weight) -> str | None:
    """The formula of what was added to ``base``, where that is how ``ft`` is made."""
    known = _added(node_of(ft), node_of(base)) is not None
    return ft.added if known and isinstance(ft, Derived) else None


def _added(node: Node, base: Node) -> Node | None:
    if node.op == "add" and node.inputs[0] is base:
        return node.inputs[1]
    if node.op == base.op == "concat" and node.attributes == base.attributes:
        pairs = list(zip(node.inputs, base.inputs, strict=False))
        alike = len(node.inputs) == len(base.inputs) and all(a.shape == b.shape for a, b in pairs)
        parts = [_added(a, b) for a, b in pairs] if alike else []
        if parts and None not in parts:
            return algebra.concat([part for part in parts if part], node.attributes[0])
    return None


def leaves(weight: Weight) -> Iterator[Stored]:
    """The tensors in files that a weight is made of, each once."""
    if isinstance(weight, Stored):
        yield weight
        return
    for node in walk(weight.node):
        if node.op == "stored":
            yield node.stored
