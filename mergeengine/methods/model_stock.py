"""Model Stock (Jang et al. 2024, "Model Stock: All we need is just a few fine-tuned models",
arXiv:2403.19522)."""

from collections.abc import Sequence
from dataclasses import dataclass

from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.combining import added
from mergeengine.methods.registry import Nothing, Term, flag, method
from mergeengine.methods.sphere import cosine, gram, gram_of_rows, lengths, number_of, square


@dataclass(frozen=True, slots=True)
class Parameters:
    filter_wise: bool = flag(False, "decide for each row (the last dimension) by itself")


@method(
    "model_stock",
    paper='Jang et al. 2024, "Model Stock: All we need is just a few fine-tuned models", '
    "arXiv:2403.19522",
    parameters=Parameters,
    weighted=False,
    sources=(2, None),
)
def model_stock(
    target: LazyTensor, terms: Sequence[Term[Nothing]], parameters: Parameters
) -> LazyTensor:
    """Add the mean of the deltas, as far as the angles between them say.

    target + t · mean δ, with t = N cos θ / (1 + (N − 1) cos θ), where cos θ is the mean cosine of
    all pairs of the N deltas.
    """
    deltas = [term.value for term in terms]
    rows = parameters.filter_wise and len(target.shape) > 1
    products = gram_of_rows(deltas) if rows else gram(deltas)
    share = number_of(_share, products, rows=rows)
    return share * (added(deltas) / float(len(deltas)))


def _share(*products: float) -> float:
    """t, given the products of all pairs."""
    matrix = square(products)
    sizes = lengths(matrix)
    count = len(sizes)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    mean = sum(cosine(matrix[i][j], sizes[i], sizes[j]) for i, j in pairs) / len(pairs)
    below = 1 + (count - 1) * mean
    return count * mean / below if below else 0.0
