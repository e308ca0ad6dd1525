"""Reductions by canonical chunks: each chunk leaves a partial value, combined in chunk order.

So a result depends on the tensor alone: not on block size, workers, order, or device.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

from mergeengine.execution.block_max import BlockMax
from mergeengine.execution.kernels import patch_of
from mergeengine.lazy.nodes import Node
from mergeengine.lazy.partition import CHUNK, chunk_count


class Fold(Protocol):
    """One reduction in progress. ``partial`` and ``shaped`` run in any worker, the rest under a
    lock."""

    def wants(self, chunk: int) -> bool:
        """Whether this pass needs a chunk."""

    def partial(self, chunk: int, values: Tensor) -> Tensor:
        """What one chunk (flat, in the pass's dtype; may be overwritten) contributes.

        The tensor is on the device of ``values``, and an accelerator's host never waits for it.
        """

    def shaped(self, chunk: int, memory: Tensor) -> Tensor:
        """The beginning of ``memory`` (flat, uint8), as what ``partial`` returns for a chunk."""

    def accept(self, chunk: int, partial: Tensor) -> None:
        """Take a chunk's contribution; chunks come in any order."""

    def finish_pass(self) -> Tensor | None:
        """After all chunks: the result, or None where another pass is needed."""


class _AllChunks:
    def wants(self, chunk: int) -> bool:
        return True


def fold_of(node: Node, *numbers: Tensor) -> Fold:
    """The fold of a reduction node; ``numbers`` are the values of its inputs after the first, of a
    derived one those of all."""
    if node.op == "derived":
        return _Derived(node, numbers)
    if node.op == "kth_place":
        k = _count_of(node.attributes[0], *numbers[1:])
        return _KthPlace(node, k, node.attributes[1], float(numbers[0]))
    if node.op == "sum":
        return _Sum()
    if node.op == "block_max":
        return BlockMax(node)
    if node.op == "row_sum":
        return _RowSum(node)
    if node.op == "column_sum":
        return _ColumnSum(node)
    return _KthMagnitude(_count_of(node.attributes[0], *numbers))


def _count_of(k: int | Fraction, *of: Tensor) -> int:
    """The number that a rank is, or is a share of."""
    return int(k * Fraction(float(of[0]))) if of else int(k)


def pairwise_sum(values: Tensor) -> Tensor:
    """Sums along the last dimension by halving, in place: the same additions on every device."""
    length = values.shape[-1]
    while length > 1:
        half = (length + 1) // 2
        values[..., : length - half] += values[..., half:length]
        length = half
    return values[..., 0].clone()


def pieces_of_rows(chunk: int, size: int, row: int) -> list[tuple[int, int]]:
    """A chunk cut into the end of a row, whole rows, and the beginning of a row."""
    head = min(size, -(chunk * CHUNK) % row)
    body = head + (size - head) // row * row
    return [(a, b) for a, b in ((0, head), (head, body), (body, size)) if a < b]


class _Sum(_AllChunks):
    def __init__(self) -> None:
        self._partials: dict[int, Tensor] = {}

    def partial(self, chunk: int, values: Tensor) -> Tensor:
        return pairwise_sum(values) if values.numel() else values.new_zeros(())

    def shaped(self, chunk: int, memory: Tensor) -> Tensor:
        return memory[:8].view(torch.float64).view(())

    def accept(self, chunk: int, partial: Tensor) -> None:
        self._partials[chunk] = partial

    def finish_pass(self) -> Tensor | None:
        total = torch.zeros((), dtype=torch.float64)
        for _, partial in sorted(self._partials.items()):
            total = total + partial
        return total


class _RowSum(_AllChunks):
    """Rows inside a chunk go to their place at once; parts of rows wait, to be added in order."""

    def __init__(self, node: Node) -> None:
        self._empty = not node.inputs[0].numel  # no rows, or rows without elements
        self._row = max(1, node.inputs[0].numel // max(1, node.numel))
        self._result = torch.zeros(node.numel, dtype=torch.float64)
        self._parts: list[tuple[int, int, Tensor]] = []  # chunk, row, part of its sum

    def partial(self, chunk: int, values: Tensor) -> Tensor:
        if not values.numel():
            return values
        sums = []
        for start, stop in pieces_of_rows(chunk, values.numel(), self._row):
            piece = values[start:stop]
            whole = (stop - start) % self._row == 0
            sums.append(pairwise_sum(piece.view(-1, self._row) if whole else piece.view(1, -1)))
        return torch.cat(sums)

    def shaped(self, chunk: int, memory: Tensor) -> Tensor:
        pieces = pieces_of_rows(chunk, self._size(chunk), self._row)
        count = sum(self._rows(start, stop) for start, stop in pieces)
        return memory[: 8 * count].view(torch.float64)

    def accept(self, chunk: int, partial: Tensor) -> None:
        if self._empty:
            return
        row = chunk * CHUNK // self._row
        done = 0
        for start, stop in pieces_of_rows(chunk, self._size(chunk), self._row):
            count = self._rows(start, stop)
            sums = partial[done : done + count]
            if (stop - start) % self._row:
                self._parts.append((chunk, row, sums.clone()))
            else:
                self._result[row : row + count] = sums
            row, done = row + count, done + count

    def finish_pass(self) -> Tensor | None:
        for _, row, part in sorted(self._parts, key=lambda entry: entry[0]):
            self._result[row] += part[0]
        return self._result

    def _size(self, chunk: int) -> int:
        return min(CHUNK, self._result.numel() * self._row - chunk * CHUNK)

    def _rows(self, start: int, stop: int) -> int:
        """Sums that a piece of a chunk gives: of its whole rows, or of the part of one."""
        return max(1, (stop - start) // self._row)


class _ColumnSum(_AllChunks):
    """Each chunk leaves a sum for every column, which is added when it is the chunk's turn."""

    def __init__(self, node: Node) -> None:
        self._row = node.numel
        self._result = torch.zeros(self._row, dtype=torch.float64)
        self._waiting: dict[int, Tensor] = {}
        self._next = 0

    def partial(self, chunk: int, values: Tensor) -> Tensor:
        sums = values.new_zeros(self._row)
        first = chunk * CHUNK
        for start, stop in pieces_of_rows(chunk, values.numel(), self._row):
            if (stop - start) % self._row:
                column = (first + start) % self._row
                sums[column : column + stop - start] += values[start:stop]
            else:
                sums += pairwise_sum(values[start:stop].view(-1, self._row).T)
        return sums

    def shaped(self, chunk: int, memory: Tensor) -> Tensor:
        return memory[: 8 * self._row].view(torch.float64)

    def accept(self, chunk: int, partial: Tensor) -> None:
        self._waiting[chunk] = partial.clone()
        while self._next in self._waiting:
            self._result += self._waiting.pop(self._next)
            self._next += 1

    def finish_pass(self) -> Tensor | None:
        return self._result


class _Derived:
    """What a function makes of what other reductions left. It needs no chunk."""

    def __init__(self, node: Node, values: Sequence[Tensor]) -> None:
        self._function, *self._arguments = node.attributes
        self._values = [value.view(node.shape) for value in values]

    def wants(self, chunk: int) -> bool:
        return False

    def partial(self, chunk: int, values: Tensor) -> Tensor:
        raise AssertionError("nothing is read for it")

    def shaped(self, chunk: int, memory: Tensor) -> Tensor:
        raise AssertionError("nothing is read for it")

    def accept(self, chunk: int, partial: Tensor) -> None:
        raise AssertionError("nothing is read for it")

    def finish_pass(self) -> Tensor | None:
        shape = self._values[0].shape
        plain = [value.reshape(-1).tolist() if shape else value.item() for value in self._values]
        found = self._function(*self._arguments, *plain)
        return torch.tensor(found, dtype=torch.float64).reshape(-1)[: shape.numel()].view(shape)


class _KthMagnitude:
    """An exact radix select: histograms of 16 bits at a time of the magnitudes' patterns.

    For floats of one sign, order by value is order by bit pattern. Two passes for float32, four
    for float64; memory is one histogram, whatever the tensor's size.
    """

    _DIGIT = 16

    def __init__(self, k: int) -> None:
        self._none = k == 0
        self._remaining = k
        self._known = 0  # the leading bits found so far
        self._bits: int | None = None  # bits not yet known
        self._histogram = torch.zeros(1 << self._DIGIT, dtype=torch.int64)
        self._dtype = torch.float32

    def wants(self, chunk: int) -> bool:
        return not self._none

    def partial(self, chunk: int, values: Tensor) -> Tensor:
        self._dtype = values.dtype
        integer = torch.int64 if values.dtype == torch.float64 else torch.int32
        total = 8 * values.itemsize - 1
        left = total if self._bits is None else self._bits
        digit = min(self._DIGIT, left)
        histogram = values.new_zeros(1 << self._DIGIT, dtype=torch.int64)
        count = _count if values.device.type == "cpu" else _count_there
        for tile in torch.split(values, patch_of(values)):
            magnitude = tile.view(integer) & ((1 << total) - 1)
            count(histogram, magnitude, self._known if left < total else None, left, digit)
        return histogram

    def shaped(self, chunk: int, memory: Tensor) -> Tensor:
        return memory[: 8 << self._DIGIT].view(torch.int64)

    def accept(self, chunk: int, partial: Tensor) -> None:
        self._histogram += partial

    def finish_pass(self) -> Tensor | None:
        if self._none:
            return torch.tensor(torch.inf, dtype=torch.float64)
        total = 63 if self._dtype == torch.float64 else 31
        left = total if self._bits is None else self._bits
        digit = min(self._DIGIT, left)
        at_least = self._histogram.flip(0).cumsum(0)
        found = int(torch.searchsorted(at_least, self._remaining))
        value = (1 << self._DIGIT) - 1 - found
        if found:
            self._remaining -= int(at_least[found - 1])
        self._known = (self._known << digit) | value
        self._bits = left - digit
        self._histogram.zero_()
        if self._bits:
            return None
        integer = torch.int64 if self._dtype == torch.float64 else torch.int32
        return torch.tensor(self._known, dtype=integer).view(self._dtype)


class _KthPlace:
    """Two passes: count in each chunk, then look into the one in which the last element lies."""

    def __init__(self, node: Node, k: int, end: str, threshold: float) -> None:
        self._k = k
        self._numel = node.inputs[0].numel
        self._threshold = threshold
        self._beyond = torch.gt if end == "largest" else torch.lt
        self._counts = torch.zeros(chunk_count(self._numel), 2, dtype=torch.int64)
        self._chunk: int | None = None  # in which the place is
        self._equal = 0  # so many elements of it that are equal to the threshold are taken

    def wants(self, chunk: int) -> bool:
        return self._chunk is None or chunk == self._chunk

    def partial(self, chunk: int, values: Tensor) -> Tensor:
        found = values.new_zeros(2, dtype=torch.int64)
        before = values.new_zeros((), dtype=torch.int64)
        for tile in torch.split(values, patch_of(values)):
            magnitude = tile.abs()
            equal = magnitude.eq(self._threshold)
            if self._chunk is None:
                found[0] += self._beyond(magnitude, self._threshold).sum()
                found[1] += equal.sum()
            else:  # as many elements lie before the last one that is taken
                ranks = equal.cumsum(0).add_(before)
                found[0] += ranks.lt(self._equal).sum()
                before += equal.sum()
        return found

    def shaped(self, chunk: int, memory: Tensor) -> Tensor:
        return memory[:16].view(torch.int64)

    def accept(self, chunk: int, partial: Tensor) -> None:
        self._counts[chunk] = partial

    def finish_pass(self) -> Tensor | None:
        if self._chunk is not None:
            place = self._chunk * CHUNK + int(self._counts[self._chunk, 0])
            return torch.tensor(place, dtype=torch.float64)  # exact up to 2**53
        beyond, equal = self._counts[:, 0], self._counts[:, 1].cumsum(0)
        taken = self._k - int(beyond.sum())
        if taken <= 0:
            return torch.tensor(-1.0, dtype=torch.float64)
        if taken >= int(equal[-1]):
            return torch.tensor(self._numel, dtype=torch.float64)
        self._chunk = int(torch.searchsorted(equal, taken))
        self._equal = taken - (int(equal[self._chunk - 1]) if self._chunk else 0)
        return None


def _count(histogram: Tensor, magnitude: Tensor, known: int | None, left: int, digit: int) -> None:
    """Count the next ``digit`` bits of magnitudes whose bits above the last ``left`` are ``known``.

    ``histogram`` is int64; ``magnitude`` int32 or int64.
    """
    if known is not None:
        magnitude = magnitude[(magnitude >> left) == known]
    digits = (magnitude >> (left - digit)) & ((1 << digit) - 1)
    histogram += torch.bincount(digits, minlength=histogram.numel())


def _count_there(
    histogram: Tensor, magnitude: Tensor, known: int | None, left: int, digit: int
) -> None:
    """The same for accelerators, where a selection or bincount would tell the host its size.

    Adding integers is exact in any order.
    """
    digits = (magnitude >> (left - digit)) & ((1 << digit) - 1)
    if known is None:
        ones = magnitude.new_ones(1, dtype=torch.int64).expand(magnitude.numel())
    else:
        ones = ((magnitude >> left) == known).to(torch.int64)
    histogram.index_add_(0, digits, ones)
