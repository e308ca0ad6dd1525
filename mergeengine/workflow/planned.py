"""A merge that is not written: another merge takes its graph in the place of its files.

The result is what it would be with the files between the two: what they would hold is rounded to
their dtype on the way, and the arithmetic of both must be of one dtype.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.compiler.bound import Binding
from mergeengine.compiler.graph import OutputTensor
from mergeengine.lazy import algebra
from mergeengine.lazy.dtypes import FLOAT64
from mergeengine.lazy.nodes import Node, walk
from mergeengine.lazy.stored import Stored

_WIDER = ("sum", "row_sum", "column_sum", "derived")  # see `program.arithmetic_of`
_AS_IT_LIES = ("repeat", "product", "block_max")


class NotFusableError(Exception):
    """The result would differ from that of two merges one after the other."""


@dataclass(frozen=True, slots=True, eq=False)
class PlannedCheckpoint(Checkpoint):
    """The output of a merge as its headers would describe it, if it were written.

    ``outputs`` are its tensors by what would be stored, ``made_of`` the models that are read for
    them, and ``content`` is the identity of the merge.
    """

    outputs: Mapping[Stored, OutputTensor] = field(default_factory=dict)
    made_of: tuple[Checkpoint, ...] = ()
    content: str = ""

    def identity(self) -> tuple[tuple[str, int, int, int], ...]:
        """There are no files whose state could change."""
        return ()

    def fingerprint(self) -> str:
        """What decides every byte of it, since there are no bytes to look at."""
        return f"merge:{self.content}"


def fused(binding: Binding, planned: Iterable[PlannedCheckpoint]) -> Binding:
    """The binding with graphs in the place of what is planned.

    NotFusableError where the merges compute in different dtypes, as they do where what is planned
    is summed in float64 (norms, projections), and where more than its values is asked for.
    """
    outputs = {stored: out for model in planned for stored, out in model.outputs.items()}
    files = {stored.file for stored in outputs}
    tensors = []
    for tensor in binding.tensors:
        output = tensor.output
        for inner in _within(output.node, outputs):
            _check(inner, output)
        for node in walk(output.node):
            # What is seen in another shape, or repeated or multiplied as it lies, must lie there.
            seen_otherwise = node.op == "stored" and node.stored not in outputs
            if (seen_otherwise and node.stored.file in files) or (
                node.op in _AS_IT_LIES and any(_within(node, outputs))
            ):
                raise NotFusableError(output.name)
        if output.compute != FLOAT64:
            for node in walk(output.node):
                if node.op in _WIDER and any(_within(node, outputs)):
                    raise NotFusableError(output.name)
        whole = outputs.get(output.node.stored) if output.node.op == "stored" else None
        if whole is not None and _is_copied(whole):
            node = target = whole.node  # copied byte for byte by both
        else:
            roots = [output.node, output.target or output.node]
            node, target = algebra.rebuilt(roots, lambda held: _value(outputs.get(held)))
        tensors.append(replace(tensor, output=replace(output, node=node, target=target)))
    return replace(binding, tensors=tuple(tensors))


def _within(root: Node, outputs: Mapping[Stored, OutputTensor]) -> Iterator[OutputTensor]:
    for node in walk(root):
        inner = outputs.get(node.stored) if node.op == "stored" else None
        if inner is not None:
            yield inner


def _value(inner: OutputTensor | None) -> Node | None:
    """What a tensor that was written would be read as.

    What is copied is rounded too, which changes nothing but keeps it apart from the tensor that it
    is a copy of: only what is one file's is one node, and vanishes from a difference.
    """
    if inner is None:
        return None
    return algebra.round_to(inner.node, inner.dtype) if inner.dtype.is_float else inner.node


def _is_copied(inner: OutputTensor) -> bool:
    return inner.node.op == "stored" and inner.node.stored.dtype == inner.dtype


def _check(inner: OutputTensor, outer: OutputTensor) -> None:
    if not inner.dtype.is_float or (outer.node.op == "stored" and _is_copied(inner)):
        return
    if inner.compute != outer.compute or inner.dtype == FLOAT64:
        raise NotFusableError(inner.name)
