"""TIES (Yadav et al. 2023, "TIES-Merging: Resolving Interference When Merging Models",
arXiv:2306.01708)."""

from collections.abc import Sequence
from dataclasses import dataclass

from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.combining import merged
from mergeengine.methods.registry import Term, flag, method, number
from mergeengine.methods.sparsifying import trimmed


@dataclass(frozen=True, slots=True)
class Source:
    density: float = number(
        1.0, "share of elements that are kept, those of largest magnitude", least=0, most=1
    )


@dataclass(frozen=True, slots=True)
class Parameters:
    normalize: bool = flag(True, "divide each element by the weights that took part in it")
    lambda_: float = number(1.0, "factor of the merged delta")


@method(
    "ties",
    paper='Yadav et al. 2023, "TIES-Merging: Resolving Interference When Merging Models", '
    "arXiv:2306.01708",
    of_source=Source,
    parameters=Parameters,
)
def ties(target: LazyTensor, terms: Sequence[Term[Source]], parameters: Parameters) -> LazyTensor:
    """Trim each delta to its largest elements, elect a sign for each element, and merge those that
    have it.

    Of n elements of a tensor max(1, ⌊density · n⌋) are kept, of equal ones the first. The sign is
    that of Σ wᵢ δᵢ; zero elects the positive, and zeros agree with nothing.
    """
    return merged(
        [trimmed(term.value, term.own.density, term.scaling) for term in terms],
        [term.scaling for term in terms],
        agree=True,
        normalize=parameters.normalize,
        scale=parameters.lambda_,
    )
