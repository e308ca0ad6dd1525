"""Fine-tuning transfer: add what fine-tuning changed in another version of the model.

    merged = target + Σᵢ scalingᵢ · (source_ftᵢ − source_baseᵢ)

Lin et al. 2025, "Efficient Model Development through Fine-tuning Transfer"; with several deltas
and scaling 1, Cao et al. 2025, "ParamΔ". On its own base it is task arithmetic (Ilharco et al.
2023, arXiv:2212.04089).
"""

from collections.abc import Sequence

from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.combining import summed
from mergeengine.methods.registry import Nothing, Term, method


def transfer(
    target: LazyTensor, deltas: Sequence[tuple[float | LazyTensor, LazyTensor]]
) -> LazyTensor:
    """``target`` plus each delta times its coefficient, in the order given.

    Coefficients are numbers, or lazy ones such as those of `methods.relative`. A coefficient of 0
    leaves its delta out: nothing of it is read.
    """
    merged = target
    for coefficient, delta in deltas:
        merged = merged + coefficient * delta
    return merged


@method(
    "transfer",
    paper='Lin et al. 2025, "Efficient Model Development through Fine-tuning Transfer"; Cao et al. '
    '2025, "ParamΔ"',
)
def change(target: LazyTensor, terms: Sequence[Term[Nothing]], parameters: Nothing) -> LazyTensor:
    """Add each delta times its scaling: what fine-tuning changed in another version of the model.

    target + Σ wᵢ δᵢ, rounded after each delta. The default.
    """
    return summed([term.value for term in terms], [term.scaling for term in terms])
