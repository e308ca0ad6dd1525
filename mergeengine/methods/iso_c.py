"""Iso-C (Marczak et al. 2025, "No Task Left Behind: Isotropic Model Merging with Common and
Task-Specific Subspaces", arXiv:2502.04959)."""

from collections.abc import Sequence
from dataclasses import dataclass

from mergeengine.lazy import algebra
from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.combining import summed
from mergeengine.methods.registry import Nothing, Term, method, number


@dataclass(frozen=True, slots=True)
class Parameters:
    lambda_: float = number(1.0, "factor of the merged delta")


@method(
    "iso_c",
    paper='Marczak et al. 2025, "No Task Left Behind: Isotropic Model Merging with Common and '
    'Task-Specific Subspaces", arXiv:2502.04959',
    parameters=Parameters,
)
def iso_c(target: LazyTensor, terms: Sequence[Term[Nothing]], parameters: Parameters) -> LazyTensor:
    """Add the weighted sum of the deltas with all singular values made equal to their mean.

    Of Σ wᵢ δᵢ = U S Vᵀ, mean(S) · U Vᵀ is added. What is not a matrix gets the weighted sum divided
    by the number of deltas. A matrix is decomposed in memory.
    """
    total = summed([term.value for term in terms], [term.scaling for term in terms])
    if len(target.shape) != 2:
        return parameters.lambda_ * (total / float(len(terms)))
    return parameters.lambda_ * LazyTensor(algebra.isotropic(total.node))
