"""DARE (Yu et al. 2024, arXiv:2311.03099), by itself and with the election of signs of TIES."""

from collections.abc import Sequence
from dataclasses import dataclass

from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.combining import merged
from mergeengine.methods.registry import Term, flag, method, number
from mergeengine.methods.sparsifying import by_chance, rescaling

_PAPER = (
    'Yu et al. 2024, "Language Models are Super Mario: Absorbing Abilities from Homologous Models '
    'as a Free Lunch", arXiv:2311.03099'
)


@dataclass(frozen=True, slots=True)
class Source:
    density: float = number(1.0, "probability that an element is kept", least=0, most=1)


@dataclass(frozen=True, slots=True)
class Parameters:
    normalize: bool = flag(False, "divide by the weights, of elements that took part with signs")
    lambda_: float = number(1.0, "factor of the merged delta")
    rescale: str = rescaling()


@method("dare_linear", paper=_PAPER, of_source=Source, parameters=Parameters)
def dare_linear(
    target: LazyTensor, terms: Sequence[Term[Source]], parameters: Parameters
) -> LazyTensor:
    """Drop elements of each delta at random, rescale the rest, and add the weighted sum.

    What is drawn depends on the plan's `seed`, the source's name and the tensor's alone.
    """
    return _merged(terms, parameters, agree=False)


@method(
    "dare_ties", paper=_PAPER + ", with the signs of TIES", of_source=Source, parameters=Parameters
)
def dare_ties(
    target: LazyTensor, terms: Sequence[Term[Source]], parameters: Parameters
) -> LazyTensor:
    """Drop elements of each delta at random, rescale the rest, and merge those of the elected sign.

    As `dare_linear`, with the election of `ties`.
    """
    return _merged(terms, parameters, agree=True)


def _merged(terms: Sequence[Term[Source]], parameters: Parameters, *, agree: bool) -> LazyTensor:
    values = [
        by_chance(term.value, term.own.density, parameters.rescale, term.scaling, term.key)
        for term in terms
    ]
    return merged(
        values,
        [term.scaling for term in terms],
        agree=agree,
        normalize=parameters.normalize,
        scale=parameters.lambda_,
    )
