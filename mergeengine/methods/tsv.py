"""Task Singular Vectors (Gargiulo et al. 2025, arXiv:2412.00081)."""

from collections.abc import Sequence
from dataclasses import dataclass

from mergeengine.lazy import algebra
from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.combining import is_zero, summed
from mergeengine.methods.registry import Nothing, Term, method, number


@dataclass(frozen=True, slots=True)
class Parameters:
    lambda_: float = number(1.0, "factor of the merged delta")


@method(
    "tsv",
    paper='Gargiulo et al. 2025, "Task Singular Vectors: Reducing Task Interference in Model '
    'Merging", arXiv:2412.00081',
    parameters=Parameters,
)
def tsv(target: LazyTensor, terms: Sequence[Term[Nothing]], parameters: Parameters) -> LazyTensor:
    """Add the leading singular vectors of each delta, made orthogonal to those of the others.

    Of N deltas each keeps a rank of max(1, ⌊min(rows, columns) / N⌋). Their left vectors side by
    side become the nearest matrix with orthonormal columns, their right ones too (Procrustes), and
    the singular values stay. What is not a matrix gets the weighted sum divided by N. All deltas of
    a matrix are held in memory at once.
    """
    parts = [term.scaling * term.value for term in terms]
    if len(target.shape) != 2:
        return parameters.lambda_ * (summed(parts, [1.0] * len(parts)) / float(len(terms)))
    used = [part for part in parts if not is_zero(part)] or parts[:1]
    return parameters.lambda_ * LazyTensor(algebra.joint_low_rank([part.node for part in used]))
