"""Consensus of TALL masks (Wang et al. 2024, arXiv:2405.07813)."""

from collections.abc import Sequence
from dataclasses import dataclass

from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.combining import added, summed
from mergeengine.methods.registry import Term, integer, method, number


@dataclass(frozen=True, slots=True)
class Source:
    tall: float = number(
        0.2, "how much larger than the others' part a delta must be to count as its own", least=0
    )


@dataclass(frozen=True, slots=True)
class Parameters:
    least_agreeing: int = integer(
        2, "deltas that must have a use for an element for it to be merged", least=0
    )
    lambda_: float = number(1.0, "factor of the merged delta")


@method(
    "consensus",
    paper='Wang et al. 2024, "Localizing Task Information for Improved Model Merging and '
    'Compression", arXiv:2405.07813',
    of_source=Source,
    parameters=Parameters,
    sources=(2, None),
)
def consensus(
    target: LazyTensor, terms: Sequence[Term[Source]], parameters: Parameters
) -> LazyTensor:
    """Add the weighted sum of the deltas where enough of them have a use for it.

    With τ = Σ wᵢ δᵢ, delta i uses an element where |δᵢ| ≥ tall · |τ − δᵢ|; elements that fewer than
    `least_agreeing` use, catastrophic and selfish ones, are left out.
    """
    total = summed([term.value for term in terms], [term.scaling for term in terms])
    uses = [abs(term.value) >= abs(total - term.value) * term.own.tall for term in terms]
    enough = added(uses) >= float(parameters.least_agreeing)
    return parameters.lambda_ * enough.where(total, -0.0)
