"""The one node type of the graph, hash-consed, and the table of its legal operations.

Four kinds decide how a node is streamed:

* ``elementwise``: any block of elements can be computed alone;
* ``layout``: a block of the output names the boxes it needs of the input;
* ``reduction``: a pass over the input that leaves a small value;
* ``whole``: needs its inputs complete in memory and declares its workspace.

``stored`` leaves lie in a file; ``constant`` leaves are numbers; ``generated`` ones follow from the
positions of their elements and are made where they would be read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from threading import Lock
from typing import Any, Literal
from weakref import WeakValueDictionary

from mergeengine.lazy.dtypes import FLOAT32, UINT8, DType
from mergeengine.lazy.stored import Stored

Kind = Literal["stored", "constant", "generated", "elementwise", "layout", "reduction", "whole"]
Shape = tuple[int, ...]

ROUNDINGS = ("to_bfloat16", "to_float16", "to_float32")
UNARY = ("neg", "abs", "sign", "sqrt", "exp", "log", *ROUNDINGS)
BINARY = ("add", "sub", "mul", "div", "maximum", "minimum", "ge", "gt", "eq")

GENERATED: dict[str, DType] = {  # and the dtype in which their values are exact
    "random": FLOAT32,  # attributes: (key,): k · 2**-24 with k from 0 to 2**24 - 1, evenly
    "rows": UINT8,  # attributes: ((first, last), ...): 1 in these rows; shape (rows, 1, ...)
    "upto": UINT8,  # inputs: (place,): 1 at the flat positions up to it
}

WHOLE = ("low_rank", "isotropic", "joint_low_rank", "row_rank")

KINDS: dict[str, Kind] = {
    "stored": "stored",  # attributes: (Stored,)
    "constant": "constant",  # attributes: (value,)
    **dict.fromkeys(GENERATED, "generated"),
    **dict.fromkeys(UNARY, "elementwise"),  # `to_`: rounded as an output of that dtype would be
    **dict.fromkeys(BINARY, "elementwise"),  # comparisons give 1.0 and 0.0
    "where": "elementwise",  # inputs: condition (non-zero is true), then, else
    "slice": "layout",  # attributes: ((start, stop) per dimension)
    "permute": "layout",  # attributes: the input's dimension for each of the output's
    "take": "layout",  # attributes: (dimension, indices); index -1 is a row of zeros
    "concat": "layout",  # attributes: (dimension,)
    # attributes: (factor, first) per dimension: element i is element (i + first) // factor
    "repeat": "layout",
    # inputs: (left, right), views of shape (..., m, k) and (..., k, n): a matrix product, whose
    # terms are added in the order of k, each operation rounded
    "product": "layout",
    "sum": "reduction",  # float64, over everything; shape ()
    "row_sum": "reduction",  # float64; attributes: (kept,): over all but the first dimensions
    "column_sum": "reduction",  # float64; over the first dimension, which keeps size 1
    "block_max": "reduction",  # attributes: so many elements per dimension: the largest |x| of each
    # attributes: (k,): the k-th largest |x|, k from 1; shape (). With a second input, a number n, k
    # is a share: floor(k * n), and the result is infinite where that is 0
    "kth_magnitude": "reduction",
    # inputs: (x, its threshold); attributes: (k, end): the flat position of the last element that
    # is among the k largest (or smallest) |x| for being equal to the threshold. With a third input
    # k is a share of it
    "kth_place": "reduction",
    # inputs: reductions; attributes: (function, *arguments): what a function of Python's floats
    # (of lists of them, for row sums) makes of their values, in float64; takes no pass
    "derived": "reduction",
    "low_rank": "whole",  # attributes: (rank,): the nearest matrix of that rank
    "isotropic": "whole",  # the same singular vectors, all singular values their mean
    # attributes: (count,): of so many matrices one above the other, their leading singular vectors
    # made orthogonal to each other; see `methods.tsv`
    "joint_low_rank": "whole",
    "row_rank": "whole",  # places of |x| in its row (the last dimension), from 0, the smallest
}


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Node:
    """One operation. Equal nodes are one object, so identity is equality.

    ``passes``: whether it, or a node below it, takes a pass of its own before it can be used.
    """

    op: str
    inputs: tuple["Node", ...]
    shape: Shape
    attributes: tuple[Any, ...]
    passes: bool

    @property
    def kind(self) -> Kind:
        return KINDS[self.op]

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def stored(self) -> Stored:
        """The tensor in a file that a ``stored`` leaf stands for."""
        tensor: Stored = self.attributes[0]
        return tensor

    @property
    def value(self) -> float:
        """The number of a ``constant``."""
        number: float = self.attributes[0]
        return number


_Key = tuple[str, tuple[Node, ...], Shape, tuple[Any, ...]]
_interned: WeakValueDictionary[_Key, Node] = WeakValueDictionary()
_lock = Lock()


def intern(op: str, inputs: tuple[Node, ...], shape: Shape, *attributes: Any) -> Node:
    """The node of these parts: the existing one where there is one."""
    if op == "constant":  # 0.0 == -0.0 and 1 == True, but they are different constants
        key: _Key = (op, inputs, shape, (float(attributes[0]).hex(),))
    else:
        key = (op, inputs, shape, attributes)
    passes = KINDS[op] in ("reduction", "whole") or any(below.passes for below in inputs)
    node = Node(
        op, inputs, shape, attributes, passes
    )  # in vain at times; looking twice would take longer
    with _lock:
        return _interned.setdefault(key, node)


def walk(*roots: Node) -> Iterator[Node]:
    """Every node below the roots once, inputs before users (iterative: graphs may be deep)."""
    seen: set[int] = set()
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            if not node.inputs:
                yield node
                continue
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(node.inputs))
