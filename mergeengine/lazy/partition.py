"""The canonical partition of a tensor, and boxes of flat ranges.

Every tensor is cut into chunks of ``CHUNK`` elements of its row-major order, whatever the
machine and the memory: digests, journals and reductions count chunks, so no result depends on
how much is read at a time. Where a sample will do, it is the first ``SAMPLE`` elements of every
chunk.
"""

from collections.abc import Iterator

from mergeengine.lazy.algebra import Box
from mergeengine.lazy.nodes import Shape

CHUNK = 1 << 20
SAMPLE = 1 << 15  # as in native.c


def chunk_count(numel: int) -> int:
    """Chunks of a tensor; an empty tensor has one, empty, so that it is counted too."""
    return max(1, -(-numel // CHUNK))


def boxes(shape: Shape, start: int, stop: int) -> Iterator[Box]:
    """The flat range ``start:stop`` of a row-major tensor as boxes, in flat order.

    At most 2·rank - 1 of them: part of a row, whole rows, part of a row, in each dimension.
    """
    if start >= stop:
        return
    if not shape:
        yield ()
        return
    inner = 1
    for size in shape[1:]:
        inner *= size
    first, offset = divmod(start, inner)
    last, remainder = divmod(stop, inner)
    if first == last:
        for box in boxes(shape[1:], offset, remainder):
            yield ((first, first + 1), *box)
        return
    if offset:
        for box in boxes(shape[1:], offset, inner):
            yield ((first, first + 1), *box)
        first += 1
    if first < last:
        yield ((first, last), *((0, size) for size in shape[1:]))
    if remainder:
        for box in boxes(shape[1:], 0, remainder):
            yield ((last, last + 1), *box)
