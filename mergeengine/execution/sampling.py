"""Measuring what rounding lost, with torch: see ``precision``."""

import torch
from torch import Tensor

from mergeengine.execution.native import VECTOR
from mergeengine.execution.precision import Sums


def sums_of(out: Tensor, exact: Tensor, start: Tensor) -> Sums:
    """The sums of one chunk's sample (flat): values as rounded, before, and what was added to.

    The same additions in the same order as in ``native/vector.h``.
    """
    exact = exact.to(torch.float64)
    lost, added = out.to(torch.float64) - exact, exact - start.to(torch.float64)
    finite = torch.isfinite(lost) & torch.isfinite(added)
    rows = -(-out.numel() // VECTOR)
    squares = exact.new_zeros(2, rows * VECTOR)
    for row, values in zip(squares, (lost, added), strict=True):
        row[: out.numel()] = torch.where(finite, values * values, 0.0)
    halves = squares.view(2, rows, VECTOR)
    while halves.shape[2] > 1:
        half = halves.shape[2] // 2
        halves = halves[..., :half] + halves[..., half:]
    found = [0.0, 0.0]
    for number, of_rows in enumerate(halves.view(2, rows).tolist()):
        for value in of_rows:
            found[number] += value
    return found[0], found[1]
