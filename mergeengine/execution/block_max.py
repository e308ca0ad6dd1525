"""The largest magnitude of each block of a matrix, gathered chunk by chunk in any order."""

from math import prod

import torch
from torch import Tensor

from mergeengine.lazy.nodes import Node
from mergeengine.lazy.partition import CHUNK


class BlockMax:
    """A fold (see ``execution.reductions``): maxima are exact, whatever comes first.

    A chunk is a range of the flat tensor: the end of a row, whole rows, the beginning of a row. It
    leaves the maxima, as far as it knows them, of the rows of blocks that it touches.
    """

    def __init__(self, node: Node) -> None:
        operand = node.inputs[0]
        *_, self._height, self._width = node.attributes
        self._rows, self._row = operand.shape[-2:]
        self._numel = operand.numel
        self._high, self._wide = node.shape[-2:]
        self._result = torch.zeros(prod(node.shape[:-1]), self._wide, dtype=torch.float64)
        self._shape = node.shape
        self._dtype = torch.float32

    def wants(self, chunk: int) -> bool:
        return True

    def partial(self, chunk: int, values: Tensor) -> Tensor:
        self._dtype = values.dtype
        first, last = self._touched(chunk)
        found = values.new_zeros(last - first, self._wide, dtype=torch.float64)
        start = chunk * CHUNK
        values.abs_()
        for low, high in self._pieces(start, values.numel()):
            row, column = divmod(start + low, self._row)
            whole = (high - low) % self._row == 0
            rows = values[low:high].view(-1, self._row) if whole else values[low:high].view(1, -1)
            maxima = self._of_columns(rows, column)
            places = values.new_ones(len(rows), dtype=torch.int64).cumsum(0).add_(row - 1)
            places = self._block_row(places) - first
            left = column // self._width
            window = found[:, left : left + maxima.shape[1]]
            index = places[:, None].expand(maxima.shape)
            window.scatter_reduce_(0, index, maxima.to(torch.float64), "amax")
        return found

    def shaped(self, chunk: int, memory: Tensor) -> Tensor:
        first, last = self._touched(chunk)
        size = 8 * (last - first) * self._wide
        return memory[:size].view(torch.float64).view(last - first, self._wide)

    def accept(self, chunk: int, partial: Tensor) -> None:
        first, last = self._touched(chunk)
        window = self._result[first:last]
        torch.maximum(window, partial, out=window)

    def finish_pass(self) -> Tensor | None:
        return self._result.view(self._shape).to(self._dtype)

    def _touched(self, chunk: int) -> tuple[int, int]:
        """The rows of blocks that a chunk has elements of."""
        start, stop = chunk * CHUNK, min((chunk + 1) * CHUNK, self._numel)
        rows = torch.tensor([start // self._row, (stop - 1) // self._row])
        first, last = self._block_row(rows).tolist()
        return first, last + 1

    def _block_row(self, rows: Tensor) -> Tensor:
        """The row of blocks of each row; the blocks of a stack's matrices are its own."""
        matrix: Tensor = rows // self._rows
        own: Tensor = (rows - matrix * self._rows) // self._height
        return matrix * self._high + own

    def _of_columns(self, rows: Tensor, column: int) -> Tensor:
        """Maxima of each row, whose first element is in ``column``, in every block of columns."""
        width = rows.shape[1]
        head = min(width, -column % self._width)
        body = (width - head) // self._width
        parts = [rows[:, :head].amax(1, keepdim=True)] if head else []
        if body:
            middle = rows[:, head : head + body * self._width]
            parts.append(middle.view(-1, body, self._width).amax(2))
        if (done := head + body * self._width) < width:
            parts.append(rows[:, done:].amax(1, keepdim=True))
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def _pieces(self, start: int, size: int) -> list[tuple[int, int]]:
        head = min(size, -start % self._row)
        body = head + (size - head) // self._row * self._row
        return [(a, b) for a, b in ((0, head), (head, body), (body, size)) if a < b]
