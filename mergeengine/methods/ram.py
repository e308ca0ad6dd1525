"""RAM (Yuan et al. 2026, "Behavior Knowledge Merge in Reinforced Agentic Models",
arXiv:2601.13572)."""

from collections.abc import Sequence
from dataclasses import dataclass

from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.combining import added
from mergeengine.methods.registry import Nothing, Term, method, number


@dataclass(frozen=True, slots=True)
class Parameters:
    epsilon: float = number(1e-5, "a delta has changed an element by more than this", least=0)


@method(
    "ram",
    paper='Yuan et al. 2026, "Behavior Knowledge Merge in Reinforced Agentic Models", '
    "arXiv:2601.13572",
    parameters=Parameters,
    weighted=False,
)
def ram(target: LazyTensor, terms: Sequence[Term[Nothing]], parameters: Parameters) -> LazyTensor:
    """Add what one delta alone has changed as it is, and the mean of what several have.

    Each element is divided by the number of deltas that changed it, so that changes which are not
    shared are not diluted.
    """
    changed = [abs(term.value) > parameters.epsilon for term in terms]
    total = added([each.where(term.value, -0.0) for each, term in zip(changed, terms, strict=True)])
    return total / added(changed).maximum(1.0)
