"""The compiled graph: one expression for each output tensor."""

from collections.abc import Iterator
from dataclasses import dataclass

from mergeengine.lazy.dtypes import FLOAT32, FLOAT64, DType
from mergeengine.lazy.nodes import Node, Shape, walk
from mergeengine.lazy.stored import Stored, StoredFile


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of the output.

    ``compute`` is the dtype of its arithmetic. Where the expression is a stored tensor of the
    output's own dtype, nothing is computed and its bytes are copied. ``target`` is what the tensor
    would be without any merge, as far as that is known.
    """

    name: str
    dtype: DType
    compute: DType
    node: Node
    target: Node | None = None

    @property
    def shape(self) -> Shape:
        return self.node.shape

    @property
    def nbytes(self) -> int:
        return self.node.numel * self.dtype.itemsize


def compute_dtype(output: DType, asked: str = "auto") -> DType:
    """float32 for 16-bit outputs, float64 for wider ones, unless the plan asks otherwise."""
    if asked != "auto":
        return {"float32": FLOAT32, "float64": FLOAT64}[asked]
    return FLOAT64 if output.itemsize >= 4 else FLOAT32


@dataclass(frozen=True, slots=True)
class Graph:
    """Every output tensor, in the order of the target's files."""

    tensors: tuple[OutputTensor, ...]

    def inputs(self) -> Iterator[Stored]:
        """The stored tensors that are really read, each once."""
        for node in walk(*(tensor.node for tensor in self.tensors)):
            if node.op == "stored":
                yield node.stored

    def files(self) -> tuple[StoredFile, ...]:
        """The files that are really read, in order of first use."""
        return tuple(dict.fromkeys(tensor.file for tensor in self.inputs()))
