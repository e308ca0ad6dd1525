"""What of a delta the target has not done already, or undone."""

from collections.abc import Sequence
from dataclasses import dataclass

from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods import masking
from mergeengine.methods.combining import summed
from mergeengine.methods.registry import Nothing, Term, method, number


@dataclass(frozen=True, slots=True)
class Parameters:
    beta: float = number(1.0, "how much of the common part is taken out")


@method(
    "orthogonal",
    paper="none: the projection of linear algebra, as of the mask `orthogonal_to: target_shift`",
    parameters=Parameters,
)
def orthogonal(
    target: LazyTensor, terms: Sequence[Term[Nothing]], parameters: Parameters
) -> LazyTensor:
    """Add the part of each delta that is orthogonal to the target's own shift from its base.

    target + Σ wᵢ (δᵢ − beta · ⟨δᵢ, Dᵢ⟩ / ⟨Dᵢ, Dᵢ⟩ · Dᵢ), with Dᵢ = target − source_baseᵢ, per
    tensor.
    """
    parts = [masking.orthogonal(term.value, term.shift, parameters.beta) for term in terms]
    return summed(parts, [term.scaling for term in terms])
