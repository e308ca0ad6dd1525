"""LiNeS: scaling by layers (Wang et al. 2024, arXiv:2410.17146)."""

from collections.abc import Sequence
from dataclasses import dataclass

from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.combining import summed
from mergeengine.methods.registry import Nothing, Term, method, number
from mergeengine.values.parameters import Schedule


@dataclass(frozen=True, slots=True)
class Parameters:
    depth_scale: float = number(
        Schedule((0.0, 1.0), words="{shallow: 0, deep: 1}"),
        "factor of the sum; a schedule, as a rule from a small one to a large one",
    )


@method(
    "lines",
    paper='Wang et al. 2024, "LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances '
    'Model Merging", arXiv:2410.17146',
    parameters=Parameters,
)
def lines(target: LazyTensor, terms: Sequence[Term[Nothing]], parameters: Parameters) -> LazyTensor:
    """Add the weighted sum of the deltas, shallow layers less than deep ones.

    target + (α + β (l − 1) / (L − 1)) · Σ wᵢ δᵢ for layer l of L: α is the `shallow` of
    `depth_scale`, α + β its `deep`.
    """
    total = summed([term.value for term in terms], [term.scaling for term in terms])
    return parameters.depth_scale * total
