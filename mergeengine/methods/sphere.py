"""Vectors by their lengths and angles: what methods on spheres need is in the products of all
pairs (the Gram matrix), so that each is a weighted sum whose weights are numbers.

Functions of numbers get the products of n vectors as `gram` lists them, and work in float64.
"""

from collections.abc import Callable, Sequence
from math import acos, cos, nan, sin, sqrt

from mergeengine.lazy.tensor import LazyTensor, derived

Products = Sequence[float]


def gram(vectors: Sequence[LazyTensor]) -> list[LazyTensor]:
    """The products of vector i with each vector j >= i, row by row; whole tensors."""
    return [a.dot(b) for place, a in enumerate(vectors) for b in vectors[place:]]


def gram_of_rows(vectors: Sequence[LazyTensor]) -> list[LazyTensor]:
    """The same for each row, along the last dimension; shape (..., 1)."""
    kept = len(vectors[0].shape) - 1
    return [(a * b).row_sum(kept) for place, a in enumerate(vectors) for b in vectors[place:]]


def square(products: Products) -> list[list[float]]:
    """The whole symmetric matrix."""
    count = int((sqrt(8 * len(products) + 1) - 1) / 2)
    matrix = [[0.0] * count for _ in range(count)]
    rest = iter(products)
    for row in range(count):
        for column in range(row, count):
            matrix[row][column] = matrix[column][row] = next(rest)
    return matrix


def each_row(
    function: Callable[..., float], arguments: tuple[object, ...], *rows: list[float]
) -> list[float]:
    """A function of one row's numbers, for all rows."""
    return [function(*arguments, *values) for values in zip(*rows, strict=True)]


def number_of(
    function: Callable[..., float],
    products: Sequence[LazyTensor],
    *arguments: object,
    rows: bool = False,
) -> LazyTensor:
    """``function(*arguments, *products)``; with ``rows``, of each row."""
    if rows:
        return derived(each_row, *products, arguments=(function, arguments))
    return derived(function, *products, arguments=arguments)


def lengths(matrix: list[list[float]]) -> list[float]:
    return [_root(matrix[i][i]) for i in range(len(matrix))]


def cosine(product: float, one: float, other: float) -> float:
    """Of two vectors of these lengths, within -1 and 1; 0 where one of them is 0."""
    if one == 0 or other == 0:
        return 0.0
    found = product / one / other
    return max(-1.0, min(1.0, found)) if found == found else nan


def quadratic(weights: Sequence[float], matrix: list[list[float]]) -> float:
    """The length of a weighted sum."""
    pairs = [(i, j) for i in range(len(weights)) for j in range(len(weights))]
    return _root(sum(weights[i] * weights[j] * matrix[i][j] for i, j in pairs))


def arc_weight(which: int, t: float, angle: float) -> float:
    """The weight of the first (0) or second (1) end at ``t`` of an arc of ``angle`` (radians)."""
    return sin((t if which else 1 - t) * angle) / sin(angle)


def angle_of(found: float) -> float:
    return acos(found) if found == found else nan


def turn(angle: float) -> tuple[float, float]:
    """Cosine and sine, not a number for an angle that is none."""
    finite = angle - angle == 0
    return (cos(angle), sin(angle)) if finite else (nan, nan)


def _root(value: float) -> float:
    return sqrt(value) if value > 0 else 0.0 if value <= 0 else nan
