"""Passes that give what an output is a sum upon: to measure its rounding, and to keep it."""

from math import nan

from mergeengine.compiler.program import Piece, begun_upon, compile_expressions, concatenated
from mergeengine.compiler.schedule import Step, TensorSchedule
from mergeengine.lazy import algebra


def sample_step(tensor: TensorSchedule) -> Step:
    """A pass with two results for each of the output's, in the dtype of the arithmetic: first all
    the values before they are rounded, then all those that they are sums upon (NaN where they are
    no sums)."""
    nodes = [to.output.node for to in tensor.destinations]
    pieces = []
    for parts in zip(*map(concatenated, nodes), strict=True):
        roots = [root for _, root in parts]
        nothing = algebra.constant(nan, roots[0].shape)
        starts = [begun_upon(root) or nothing for root in roots]
        pieces.append(Piece(parts[0][0], compile_expressions(*roots, *starts)))
    write = tensor.write
    return Step("write", nodes[0], write.compute, write.compute, tuple(pieces), 2 * len(nodes))


def starts_step(tensor: TensorSchedule, number: int) -> Step:
    """A pass that gives what one of the output's results is a sum upon, in the result's dtype (NaN
    where it is no sum)."""
    root, write = tensor.destinations[number].output.node, tensor.write
    starts = [
        (box, begun_upon(piece) or algebra.constant(nan, piece.shape))
        for box, piece in concatenated(root)
    ]
    pieces = [Piece(box, compile_expressions(start)) for box, start in starts]
    return Step("write", root, write.compute, write.result, tuple(pieces))
