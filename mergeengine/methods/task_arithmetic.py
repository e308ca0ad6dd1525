"""Task arithmetic (Ilharco et al. 2023, arXiv:2212.04089)."""

from collections.abc import Sequence
from dataclasses import dataclass

from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.combining import merged
from mergeengine.methods.registry import Nothing, Term, flag, method, number


@dataclass(frozen=True, slots=True)
class Parameters:
    normalize: bool = flag(False, "divide by the sum of the weights")
    lambda_: float = number(1.0, "factor of the sum")


@method(
    "task_arithmetic",
    paper='Ilharco et al. 2023, "Editing Models with Task Arithmetic", arXiv:2212.04089',
    parameters=Parameters,
)
def task_arithmetic(
    target: LazyTensor, terms: Sequence[Term[Nothing]], parameters: Parameters
) -> LazyTensor:
    """Add the weighted sum of the deltas.

    target + lambda · Σ wᵢ δᵢ, the sum divided by Σ wᵢ with `normalize`.
    """
    return merged(
        [term.value for term in terms],
        [term.scaling for term in terms],
        agree=False,
        normalize=parameters.normalize,
        scale=parameters.lambda_,
    )
