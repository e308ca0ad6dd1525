"""WIDEN: by changes of magnitude and direction (Yu et al. 2024, arXiv:2408.03092)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, sqrt

from mergeengine.lazy.tensor import LazyTensor, derived
from mergeengine.methods.combining import added
from mergeengine.methods.registry import Nothing, Term, method, number


@dataclass(frozen=True, slots=True)
class Parameters:
    above_average: float = number(
        1.0, "a rank this many times a model's mean rank marks an important part", least=0
    )
    calibrated: float = number(1.0, "the score of important parts")


@method(
    "widen",
    paper='Yu et al. 2024, "Extend Model Merging from Fine-Tuned to Pre-Trained Large Language '
    'Models via Weight Disentanglement", arXiv:2408.03092',
    parameters=Parameters,
)
def widen(target: LazyTensor, terms: Sequence[Term[Nothing]], parameters: Parameters) -> LazyTensor:
    """Add each delta, part by part, by how much it changes magnitudes and directions.

    A matrix is taken apart into its columns (the last dimension), a vector into its elements. How
    far a model's columns are from the target's in length and in direction (1 − cos) is ranked
    within the model; a softmax over the models makes scores of the ranks, and parts that rank
    above `above_average` times the model's mean get the score `calibrated`. Each column of a delta
    is multiplied by the mean of its two scores, an element, which has no direction, by its one.
    """
    models = [target + term.value for term in terms]
    limits = (parameters.above_average, parameters.calibrated)
    if len(target.shape) < 2:
        if not target.shape:
            return added([term.scaling * term.value for term in terms]) / float(len(terms))
        changes = [abs(term.value).row_sum() for term in terms]
        scores = [
            derived(_scores_of_elements, *changes, arguments=(which, *limits))
            for which in range(len(terms))
        ]
    else:
        squares = [_by_column(each * each) for each in (target, *models)]
        products = [_by_column(target * model) for model in models]
        scores = [
            _back(derived(_scores, *squares, *products, arguments=(which, *limits)), target)
            for which in range(len(terms))
        ]
    return added(
        [score * (term.scaling * term.value) for score, term in zip(scores, terms, strict=True)]
    )


def _by_column(values: LazyTensor) -> LazyTensor:
    """Sums for each place of the last dimension; shape (columns, 1, ...)."""
    dimensions = len(values.shape)
    return values.permute(dimensions - 1, *range(dimensions - 1)).row_sum()


def _back(scores: LazyTensor, like: LazyTensor) -> LazyTensor:
    dimensions = len(like.shape)
    return scores.permute(*range(1, dimensions), 0)


def _scores(which: int, above: float, calibrated: float, *sums: list[float]) -> list[float]:
    """Of one model's columns; ``sums`` are the squares of the target and the models, then their
    products with the target."""
    count = len(sums) // 2
    norms = [[sqrt(max(0.0, value)) for value in each] for each in sums[: count + 1]]
    lengths = [[abs(a - b) for a, b in zip(norm, norms[0], strict=True)] for norm in norms[1:]]
    directions = [
        [1 - _ratio(product, a * b) for product, a, b in zip(each, norm, norms[0], strict=True)]
        for each, norm in zip(sums[count + 1 :], norms[1:], strict=True)
    ]
    found = [_scored(which, above, calibrated, each) for each in (lengths, directions)]
    return [(a + b) / 2 for a, b in zip(*found, strict=True)]


def _scores_of_elements(
    which: int, above: float, calibrated: float, *changes: list[float]
) -> list[float]:
    return _scored(which, above, calibrated, changes)


def _scored(
    which: int, above: float, calibrated: float, divergences: Sequence[list[float]]
) -> list[float]:
    ranks = [_ranks(each) for each in divergences]
    count = len(ranks[which])
    limit = above * (count + 1) / 2  # times the mean rank
    return [
        calibrated
        if own > limit
        else exp(own / count) / sum(exp(rank[place] / count) for rank in ranks)
        for place, own in enumerate(ranks[which])
    ]


def _ranks(values: list[float]) -> list[int]:
    """From 1, the smallest, to n, the largest; of equal ones the first is smaller."""
    ranks = [0] * len(values)
    for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        ranks[index] = place + 1
    return ranks


def _ratio(product: float, below: float) -> float:
    return product / below if below else 1.0
