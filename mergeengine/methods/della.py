"""DELLA (Deep et al. 2024, arXiv:2406.11617), by itself and with the election of signs of TIES."""

from collections.abc import Sequence
from dataclasses import dataclass

from mergeengine.lazy import algebra
from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.combining import is_zero, merged
from mergeengine.methods.registry import Term, flag, method, number
from mergeengine.methods.sparsifying import by_chance, rescaling

_PAPER = (
    'Deep et al. 2024, "DELLA-Merging: Reducing Interference in Model Merging through '
    'Magnitude-Based Sampling", arXiv:2406.11617'
)


@dataclass(frozen=True, slots=True)
class Source:
    density: float = number(1.0, "mean probability that an element is kept", least=0, most=1)
    epsilon: float = number(
        0.15, "how far the probabilities go to both sides of it", least=0, most=0.5
    )


@dataclass(frozen=True, slots=True)
class Parameters:
    normalize: bool = flag(False, "divide by the weights, of elements that took part with signs")
    lambda_: float = number(1.0, "factor of the merged delta")
    rescale: str = rescaling()


@method("della_linear", paper=_PAPER, of_source=Source, parameters=Parameters)
def della_linear(
    target: LazyTensor, terms: Sequence[Term[Source]], parameters: Parameters
) -> LazyTensor:
    """Drop elements of each delta at random, small ones more often, rescale the rest, and add the
    weighted sum.

    The probability to be kept goes from density − epsilon, the smallest magnitude of a row (the
    last dimension), to density + epsilon, the largest, evenly by rank. A density of 1 keeps
    everything, of 0 nothing. Ranking holds the delta of one tensor in memory.
    """
    return _merged(terms, parameters, agree=False)


@method("della", paper=_PAPER + ", with the signs of TIES", of_source=Source, parameters=Parameters)
def della(target: LazyTensor, terms: Sequence[Term[Source]], parameters: Parameters) -> LazyTensor:
    """Drop elements of each delta at random, small ones more often, rescale the rest, and merge
    those of the elected sign.

    As `della_linear`, with the election of `ties`.
    """
    return _merged(terms, parameters, agree=True)


def _merged(terms: Sequence[Term[Source]], parameters: Parameters, *, agree: bool) -> LazyTensor:
    values = [_thinned(term, parameters.rescale) for term in terms]
    return merged(
        values,
        [term.scaling for term in terms],
        agree=agree,
        normalize=parameters.normalize,
        scale=parameters.lambda_,
    )


def _thinned(term: Term[Source], rescale: str) -> LazyTensor:
    density, epsilon = term.own.density, term.own.epsilon
    if density in (0, 1) or is_zero(term.value):
        return by_chance(term.value, density, rescale, term.scaling, term.key)
    if not (density - epsilon > 0 and density + epsilon < 1):
        raise ValueError(f"density {density:.6g} ± epsilon {epsilon:.6g} must lie between 0 and 1")
    width = term.value.shape[-1] if term.value.shape else 1
    if width < 2:
        return by_chance(term.value, density, rescale, term.scaling, term.key)
    rank = LazyTensor(algebra.row_rank(term.value.node))
    chances = rank * (2 * epsilon / (width - 1)) + (density - epsilon)
    return by_chance(term.value, density, rescale, term.scaling, term.key, chances)
