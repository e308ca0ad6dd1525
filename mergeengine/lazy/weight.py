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
class Derived:
    """A tensor that its checkpoint does not store as it is.

    ``dtype`` is that of its values: what it is written in where the plan says nothing. ``source``
    is the reference of the checkpoint, as in ``Stored``.
    """

    source: str
    name: str
    dtype: DType
    node: Node

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


def leaves(weight: Weight) -> Iterator[Stored]:
    """The tensors in files that a weight is made of, each once."""
    if isinstance(weight, Stored):
        yield weight
        return
    for node in walk(weight.node):
        if node.op == "stored":
            yield node.stored
