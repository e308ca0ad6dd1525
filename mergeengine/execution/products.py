"""Matrix products of few ranks, block by block: B · A of an adapter is never a whole matrix.

The terms of a sum are added one after the other in the dtype of the arithmetic, as elementwise
operations are: then a block does not depend on what is computed beside it, which a BLAS does
not promise.
"""

from collections.abc import Callable

from torch import Tensor, empty

from mergeengine.compiler.schedule import PATCH, RANKS
from mergeengine.execution.views import index_of, sizes_of, tiles
from mergeengine.lazy.algebra import Box
from mergeengine.lazy.nodes import Node


def multiply(out: Tensor, node: Node, box: Box, factor: Callable[[int, Box], Tensor]) -> None:
    """Fill ``out``, of the sizes of ``box``, with that part of a product.

    ``factor`` gives a box of the left (0) or right (1) operand in ``out``'s dtype.
    """
    *batch, rows, columns = box
    ranks = node.inputs[0].shape[-1]
    term = empty(min(PATCH, out.numel()), dtype=out.dtype)
    for first in range(0, ranks, RANKS):
        slab = (first, min(first + RANKS, ranks))
        left = factor(0, (*batch, rows, slab))
        right = factor(1, (*batch, slab, columns))
        for tile in tiles(sizes_of(box), PATCH):
            window = out[index_of(tile)]
            index = index_of(tile)
            product = term[: window.numel()].view(window.shape)
            for rank in range(slab[1] - first):
                one = left[(*index[:-1], slice(rank, rank + 1))]
                other = right[(*index[:-2], slice(rank, rank + 1), index[-1])]
                if first + rank == 0:
                    window.copy_(one * other)
                    continue
                window += product.copy_(one).mul_(other)
