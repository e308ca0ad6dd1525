"""Barycentric interpolation of any number of vectors on a sphere."""

from collections.abc import Sequence
from dataclasses import dataclass

from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.combining import summed
from mergeengine.methods.nuslerp import plain
from mergeengine.methods.registry import Nothing, Term, flag, method, number
from mergeengine.methods.sphere import gram, lengths, number_of, quadratic, square, turn


@dataclass(frozen=True, slots=True)
class Parameters:
    normalize_weights: bool = flag(True, "divide the weights by their sum")
    eps: float = number(1e-8, "lengths below this count as zero", least=0)


@method(
    "multislerp",
    paper='after Shoemake 1985, "Animating Rotation with Quaternion Curves", as in mergekit',
    space="both",
    parameters=Parameters,
    sources=(2, None),
)
def multislerp(
    target: LazyTensor, terms: Sequence[Term[Nothing]], parameters: Parameters
) -> LazyTensor:
    """Average the directions of models, or deltas, in the plane that touches the sphere at their
    mean, and the lengths by weight.

    With unit vectors uᵢ, m = Σ wᵢ uᵢ / ‖Σ wᵢ uᵢ‖ and v = Σ wᵢ (uᵢ − ⟨uᵢ, m⟩ m): the direction is
    m cos ‖v‖ + v sin ‖v‖ / ‖v‖ and the length Σ wᵢ ‖xᵢ‖. Directions that cancel give Σ wᵢ xᵢ.
    """
    weights = [plain(term.scaling) for term in terms]
    total = sum(weights)
    if parameters.normalize_weights:
        if total == 0:
            raise ValueError("its weights have the sum 0 and cannot be normalised")
        weights = [weight / total for weight in weights]
    values = [term.value for term in terms]
    products = gram(values)
    factors = [
        number_of(_weight, products, which, tuple(weights), parameters.eps)
        for which in range(len(terms))
    ]
    return summed(values, factors)


def _weight(which: int, weights: tuple[float, ...], eps: float, *products: float) -> float:
    matrix = square(products)
    sizes = lengths(matrix)
    count = range(len(weights))
    if sizes[which] == 0:
        return 0.0
    units = [
        [matrix[i][j] / sizes[i] / sizes[j] if sizes[i] and sizes[j] else 0.0 for j in count]
        for i in count
    ]
    length = quadratic(weights, units)
    if length < eps:
        return weights[which]
    mean = [weight / length for weight in weights]
    along = [sum(mean[j] * units[i][j] for j in count) for i in count]
    drift = sum(weights[i] * along[i] for i in count)
    tangent = [weights[i] - drift * mean[i] for i in count]
    angle = quadratic(tangent, units)
    size = sum(weights[i] * sizes[i] for i in count)
    if angle < eps:
        found = mean[which]
    else:
        cosine, sine = turn(angle)
        found = mean[which] * cosine + tangent[which] * sine / angle
    return size * found / sizes[which]
