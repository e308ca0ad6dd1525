"""The pass that gives what the rounding of an output's sample is measured with."""

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
