"""LazyTensor: arithmetic that builds a graph and reads nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Union

from mergeengine.lazy import algebra
from mergeengine.lazy.dtypes import DType
from mergeengine.lazy.nodes import Node, Shape

Operand = Union["LazyTensor", float, int]


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor-valued expression. Operators combine it with others of its shape or with numbers.

    Nothing is read until a checkpoint is saved or blocks are iterated. Arithmetic is then done
    in float32 for 16-bit outputs and in float64 otherwise, each operation rounded separately.
    """

    node: Node

    @property
    def shape(self) -> Shape:
        return self.node.shape

    def __add__(self, other: Operand) -> "LazyTensor":
        return _apply("add", self, other)

    def __radd__(self, other: Operand) -> "LazyTensor":
        return _apply("add", other, self)

    def __sub__(self, other: Operand) -> "LazyTensor":
        return _apply("sub", self, other)

    def __rsub__(self, other: Operand) -> "LazyTensor":
        return _apply("sub", other, self)

    def __mul__(self, other: Operand) -> "LazyTensor":
        return _apply("mul", self, other)

    def __rmul__(self, other: Operand) -> "LazyTensor":
        return _apply("mul", other, self)

    def __truediv__(self, other: Operand) -> "LazyTensor":
        return _apply("div", self, other)

    def __rtruediv__(self, other: Operand) -> "LazyTensor":
        return _apply("div", other, self)

    def __neg__(self) -> "LazyTensor":
        return _apply("neg", self)

    def __abs__(self) -> "LazyTensor":
        return _apply("abs", self)

    def __ge__(self, other: Operand) -> "LazyTensor":
        return _apply("ge", self, other)

    def __gt__(self, other: Operand) -> "LazyTensor":
        return _apply("gt", self, other)

    def sign(self) -> "LazyTensor":
        """-1, 0 or 1."""
        return _apply("sign", self)

    def exp(self) -> "LazyTensor":
        """To base e. Correct to about the last bit, which devices may give differently."""
        return _apply("exp", self)

    def log(self) -> "LazyTensor":
        """The natural logarithm; as exact as ``exp``."""
        return _apply("log", self)

    def sqrt(self) -> "LazyTensor":
        return _apply("sqrt", self)

    def round_to(self, dtype: DType) -> "LazyTensor":
        """The values that a tensor written as ``dtype`` would hold: rounded to nearest even."""
        return LazyTensor(algebra.round_to(self.node, dtype))

    def maximum(self, other: Operand) -> "LazyTensor":
        return _apply("maximum", self, other)

    def minimum(self, other: Operand) -> "LazyTensor":
        return _apply("minimum", self, other)

    def eq(self, other: Operand) -> "LazyTensor":
        """1.0 where equal (``==`` itself compares the expressions)."""
        return _apply("eq", self, other)

    def where(self, then: Operand, otherwise: Operand) -> "LazyTensor":
        """``then`` where this is not zero, else ``otherwise``."""
        return _apply("where", self, then, otherwise)

    def __getitem__(self, key: slice | tuple[slice, ...]) -> "LazyTensor":
        """A part, by slices with step 1: ``t[0:10]``, ``t[:, 5:]``."""
        slices = key if isinstance(key, tuple) else (key,)
        if len(slices) > len(self.shape) or any(s.step not in (None, 1) for s in slices):
            raise ValueError(f"no part {key} in a tensor of shape {self.shape}")
        padded = (*slices, *(slice(None),) * (len(self.shape) - len(slices)))
        bounds = (s.indices(n) for s, n in zip(padded, self.shape, strict=True))
        return LazyTensor(algebra.slice_box(self.node, tuple((a, max(a, b)) for a, b, _ in bounds)))

    def permute(self, *order: int) -> "LazyTensor":
        """Dimensions in another order, as torch.permute."""
        return LazyTensor(algebra.permute(self.node, order))

    def take(self, indices: Sequence[int], dimension: int = 0) -> "LazyTensor":
        """Rows by index; -1 gives a row of zeros."""
        return LazyTensor(algebra.take(self.node, indices, dimension))

    def repeat(self, factors: Sequence[int], shape: Shape) -> "LazyTensor":
        """Each element ``factors[d]`` times along dimension d, cut off at ``shape``."""
        return LazyTensor(algebra.repeat(self.node, factors, shape))

    def __matmul__(self, other: "LazyTensor") -> "LazyTensor":
        """The matrix product of two stored tensors (or views of them) with few ranks between."""
        return LazyTensor(algebra.product(self.node, other.node))

    def unsqueeze(self) -> "LazyTensor":
        """One more dimension, the first, of size 1."""
        return LazyTensor(algebra.unsqueeze(self.node))

    def squeeze(self) -> "LazyTensor":
        """Without the first dimension, which has size 1."""
        return LazyTensor(algebra.squeeze(self.node))

    def sum(self) -> "LazyTensor":
        """The sum of all elements (shape ()), in float64, in an order fixed by the shape."""
        return LazyTensor(algebra.total(self.node))

    def row_sum(self, kept: int = 1) -> "LazyTensor":
        """Sums over all dimensions but the first, or the first ``kept``: shape (rows, 1, ...)."""
        return LazyTensor(algebra.row_sum(self.node, kept))

    def column_sum(self) -> "LazyTensor":
        """Sums over the first dimension: shape (1, ...)."""
        return LazyTensor(algebra.column_sum(self.node))

    def dot(self, other: "LazyTensor") -> "LazyTensor":
        """The sum of the products of all elements (shape ()), in float64."""
        return (self * other).sum()

    def norm(self) -> "LazyTensor":
        """The Euclidean (Frobenius) norm."""
        return (self * self).sum().sqrt()

    def block_max(self, factors: Sequence[int]) -> "LazyTensor":
        """The largest absolute value of each block of ``factors`` elements of a matrix."""
        return LazyTensor(algebra.block_max(self.node, factors))

    def kth_magnitude(self, k: int) -> "LazyTensor":
        """The k-th largest absolute value, exactly; k counts from 1."""
        return LazyTensor(algebra.kth_magnitude(self.node, k))

    def low_rank(self, rank: int) -> "LazyTensor":
        """The nearest matrix of rank at most ``rank`` (truncated SVD)."""
        return LazyTensor(algebra.low_rank(self.node, rank))


def derived(
    function: Callable[..., object], *numbers: LazyTensor, arguments: tuple[object, ...] = ()
) -> LazyTensor:
    """``function(*arguments, *values)`` of sums (or of row sums), in Python's floats (or lists)."""
    return LazyTensor(algebra.derived(function, *(n.node for n in numbers), arguments=arguments))


def concat(tensors: Sequence[LazyTensor], dimension: int = 0) -> LazyTensor:
    """Tensors one after the other along ``dimension``."""
    return LazyTensor(algebra.concat([tensor.node for tensor in tensors], dimension))


def _apply(op: str, *operands: Operand) -> LazyTensor:
    nodes = [
        operand.node if isinstance(operand, LazyTensor) else algebra.constant(operand)
        for operand in operands
    ]
    return LazyTensor(algebra.elementwise(op, *nodes))
