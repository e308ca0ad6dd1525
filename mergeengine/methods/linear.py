"""Weighted averages: model soups (Wortsman et al. 2022, arXiv:2203.05482)."""

from collections.abc import Sequence
from dataclasses import dataclass

from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.combining import merged
from mergeengine.methods.registry import Nothing, Term, flag, method


@dataclass(frozen=True, slots=True)
class Parameters:
    normalize: bool = flag(True, "divide by the sum of the weights")


@method(
    "linear",
    paper='Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models '
    'improves accuracy without increasing inference time", arXiv:2203.05482',
    space="both",
    parameters=Parameters,
)
def linear(
    target: LazyTensor, terms: Sequence[Term[Nothing]], parameters: Parameters
) -> LazyTensor:
    """Average models, or deltas, by weight.

    Σ wᵢ xᵢ / Σ wᵢ; without `normalize` the sum alone. Where |Σ wᵢ| < 1e-8 nothing is divided.
    """
    return merged(
        [term.value for term in terms],
        [term.scaling for term in terms],
        agree=False,
        normalize=parameters.normalize,
        scale=1.0,
    )
