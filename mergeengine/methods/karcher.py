"""The Karcher mean on a sphere (Karcher 1977)."""

from collections.abc import Sequence
from dataclasses import dataclass

from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.combining import summed
from mergeengine.methods.registry import Nothing, Term, integer, method, number
from mergeengine.methods.sphere import angle_of, gram, lengths, number_of, quadratic, square, turn


@dataclass(frozen=True, slots=True)
class Parameters:
    max_iter: int = integer(10, "most iterations", least=1)
    tol: float = number(1e-5, "the iteration ends with a step shorter than this", least=0)


@method(
    "karcher",
    paper='Karcher 1977, "Riemannian Center of Mass and Mollifier Smoothing", CPAM 30',
    space="both",
    parameters=Parameters,
    weighted=False,
    sources=(2, None),
)
def karcher(
    target: LazyTensor, terms: Sequence[Term[Nothing]], parameters: Parameters
) -> LazyTensor:
    """Average models, or deltas, so that the squared arcs to all of them are least.

    The directions' mean on the sphere by iteration, from their plain mean on; its length is the
    mean of theirs. Every step follows from the products of the inputs, so they are read for those
    and once more.
    """
    values = [term.value for term in terms]
    products = gram(values)
    weights = [
        number_of(_weight, products, which, parameters.max_iter, parameters.tol)
        for which in range(len(terms))
    ]
    return summed(values, weights)


def _weight(which: int, most: int, tol: float, *products: float) -> float:
    """Of one input in the mean."""
    matrix = square(products)
    sizes = lengths(matrix)
    used = [place for place, size in enumerate(sizes) if size != 0]
    if which not in used:
        return 0.0
    units = [[matrix[i][j] / sizes[i] / sizes[j] for j in used] for i in used]
    mean = _mean(units, most, tol)
    length = sum(sizes) / len(sizes)
    return length * mean[used.index(which)] / sizes[which]


def _mean(units: list[list[float]], most: int, tol: float) -> list[float]:
    """The mean of unit vectors with these products, as weights of them."""
    count = range(len(units))
    share = 1 / len(units)
    length = quadratic([share] * len(units), units)
    mean = [share / length for _ in count] if length >= tol else [1.0, *[0.0] * (len(units) - 1)]
    for _ in range(most):
        near = [max(-1.0, min(1.0, sum(mean[j] * units[i][j] for j in count))) for i in count]
        angles = [angle_of(each) for each in near]
        sines = [turn(angle)[1] for angle in angles]
        pull = [
            share * angle / sine if sine > tol else 0.0
            for angle, sine in zip(angles, sines, strict=True)
        ]
        drift = sum(p * n for p, n in zip(pull, near, strict=True))
        step = [p - drift * m for p, m in zip(pull, mean, strict=True)]
        angle = quadratic(step, units)
        if not angle >= tol:
            break
        cosine, sine = turn(angle)
        mean = [m * cosine + s * sine / angle for m, s in zip(mean, step, strict=True)]
        length = quadratic(mean, units)
        mean = [m / length for m in mean]
    return mean
