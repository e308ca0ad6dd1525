"""Spherical interpolation of two by their weights, of whole tensors or of their rows or columns."""

from collections.abc import Sequence
from dataclasses import dataclass

from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.registry import Nothing, Term, choice, method
from mergeengine.methods.sphere import (
    angle_of,
    arc_weight,
    cosine,
    gram,
    gram_of_rows,
    lengths,
    number_of,
    square,
)

_LEAST_SINE = 1e-7
_LEAST_WEIGHT = 1e-6


@dataclass(frozen=True, slots=True)
class Parameters:
    along: str = choice(
        "tensor",
        "what has a direction of its own: the whole `tensor`, each of its `rows` (the last "
        "dimension), or each of its `columns` (the first)",
        "tensor",
        "rows",
        "columns",
    )


@method(
    "nuslerp",
    paper='after Shoemake 1985, "Animating Rotation with Quaternion Curves", as in mergekit',
    space="both",
    parameters=Parameters,
    alike=True,
    sources=(2, 2),
)
def nuslerp(
    target: LazyTensor, terms: Sequence[Term[Nothing]], parameters: Parameters
) -> LazyTensor:
    """Interpolate between two models, or deltas, along the arc, as far as their weights say.

    As `slerp` with t = w₂ / (w₁ + w₂), or 0.5 where |w₁ + w₂| < 1e-6; straight where sin θ < 1e-7.
    """
    a, b = (term.value for term in terms)
    first, second = (plain(term.scaling) for term in terms)
    total = first + second
    t = 0.5 if abs(total) < _LEAST_WEIGHT else second / total
    if t in (0, 1):
        return b if t else a
    dimensions = len(a.shape)
    if parameters.along == "columns" and dimensions > 1:
        away = (*range(1, dimensions), 0)
        back = (dimensions - 1, *range(dimensions - 1))
        found = _between(a.permute(*away), b.permute(*away), t, rows=True)
        return found.permute(*back)
    return _between(a, b, t, rows=parameters.along == "rows" and dimensions > 1)


def plain(weight: float | LazyTensor) -> float:
    """A weight that has to be a number: the position on a sphere cannot depend on norms."""
    if isinstance(weight, LazyTensor):
        raise ValueError(
            "its weights are plain numbers: `ratio` and `at_most` have no meaning here"
        )
    return weight


def _between(a: LazyTensor, b: LazyTensor, t: float, *, rows: bool) -> LazyTensor:
    products = gram_of_rows([a, b]) if rows else gram([a, b])
    weights = [number_of(_weight, products, which, t, rows=rows) for which in (0, 1)]
    return weights[0] * a + weights[1] * b


def _weight(which: int, t: float, *products: float) -> float:
    matrix = square(products)
    found = cosine(matrix[0][1], *lengths(matrix))
    if (1 - found * found) < _LEAST_SINE**2:
        return t if which else 1 - t
    return arc_weight(which, t, angle_of(found))
