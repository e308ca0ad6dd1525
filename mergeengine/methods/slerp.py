"""Spherical interpolation of two (Shoemake 1985, "Animating Rotation with Quaternion Curves")."""

from collections.abc import Sequence
from dataclasses import dataclass

from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.registry import Nothing, Term, method, number
from mergeengine.methods.sphere import (
    Products,
    angle_of,
    arc_weight,
    cosine,
    gram,
    lengths,
    number_of,
    square,
)

_STRAIGHT = 0.9995  # a cosine beyond which the arc is as good as straight


@dataclass(frozen=True, slots=True)
class Parameters:
    t: float = number(0.5, "from 0, the first source, to 1, the second")


@method(
    "slerp",
    paper='Shoemake 1985, "Animating Rotation with Quaternion Curves", SIGGRAPH',
    space="both",
    parameters=Parameters,
    weighted=False,
    alike=False,
    sources=(2, 2),
)
def slerp(target: LazyTensor, terms: Sequence[Term[Nothing]], parameters: Parameters) -> LazyTensor:
    """Interpolate between two models, or deltas, along the arc between their directions.

    sin((1 − t) θ) / sin θ · a + sin(t θ) / sin θ · b, where θ is the angle between a and b as whole
    tensors; (1 − t) a + t b where |cos θ| > 0.9995.
    """
    a, b = (term.value for term in terms)
    if parameters.t in (0, 1):
        return b if parameters.t else a
    products = gram([a, b])
    weights = [number_of(_weight, products, which, parameters.t) for which in (0, 1)]
    return weights[0] * a + weights[1] * b


def _weight(which: int, t: float, *products: float) -> float:
    """Of one end, given the products."""
    found = _cosine(products)
    if abs(found) > _STRAIGHT:
        return t if which else 1 - t
    return arc_weight(which, t, angle_of(found))


def _cosine(products: Products) -> float:
    matrix = square(products)
    return cosine(matrix[0][1], *lengths(matrix))
