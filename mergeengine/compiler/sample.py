"""Passes that give what an output is a merge upon: to measure its rounding, and to keep it."""

from math import nan

from mergeengine.compiler.program import (
    Piece,
    begun_upon,
    beside,
    compile_expressions,
    concatenated,
)
from mergeengine.compiler.schedule import Step, TensorSchedule
from mergeengine.lazy import algebra


def sample_step(tensor: TensorSchedule) -> Step:
    """A pass with two results for each of the output's, in the dtype of the arithmetic: first all
    the values before they are rounded, then all those that they are sums upon (NaN where they are
    no sums)."""
    outputs = [to.output for to in tensor.destinations]
    pieces = []
    for parts in zip(*(beside(each.node, each.target) for each in outputs), strict=True):
        roots = [root for _, root, _ in parts]
        nothing = algebra.constant(nan, roots[0].shape)
        starts = [begun_upon(root, target) or nothing for _, root, target in parts]
        pieces.append(Piece(parts[0][0], compile_expressions(*roots, *starts)))
    compute = tensor.write.compute
    return Step("write", outputs[0].node, compute, compute, tuple(pieces), 2 * len(outputs))


def starts_step(tensor: TensorSchedule, number: int) -> Step:
    """A pass that gives the target's values of one of the output's results, in the result's dtype;
    where no target is known, what it is a sum upon (NaN where it is no sum)."""
    output, write = tensor.destinations[number].output, tensor.write
    if output.target is not None:
        starts = list(concatenated(output.target))
    else:
        starts = [
            (box, begun_upon(root) or algebra.constant(nan, root.shape))
            for box, root in concatenated(output.node)
        ]
    pieces = [Piece(box, compile_expressions(start)) for box, start in starts]
    return Step("write", output.node, write.compute, write.result, tuple(pieces))
