"""Model Breadcrumbs (Davari and Belilovsky 2023, arXiv:2312.06795), and with the signs of TIES."""

from collections.abc import Sequence
from dataclasses import dataclass

from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.combining import merged
from mergeengine.methods.registry import Term, flag, method, number
from mergeengine.methods.sparsifying import between

_PAPER = (
    'Davari and Belilovsky 2023, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse '
    'Masks", arXiv:2312.06795'
)


@dataclass(frozen=True, slots=True)
class Source:
    density: float = number(1.0, "share of elements that are kept", least=0, most=1)
    gamma: float = number(
        0.01, "share of elements that are dropped for being the largest", least=0, most=1
    )


@dataclass(frozen=True, slots=True)
class Parameters:
    normalize: bool = flag(False, "divide by the weights, of elements that took part with signs")
    lambda_: float = number(1.0, "factor of the merged delta")


@method("breadcrumbs", paper=_PAPER, of_source=Source, parameters=Parameters)
def breadcrumbs(
    target: LazyTensor, terms: Sequence[Term[Source]], parameters: Parameters
) -> LazyTensor:
    """Drop the largest elements of each delta, then the smallest, and add the weighted sum.

    Of n elements of a tensor ⌊density · n⌋ are left. ⌊gamma · n⌋ of the largest go, or fewer where
    that would leave too few; then the smallest go. A density of 1 keeps everything.
    """
    return _merged(terms, parameters, agree=False)


@method(
    "breadcrumbs_ties",
    paper=_PAPER + ", with the signs of TIES",
    of_source=Source,
    parameters=Parameters,
)
def breadcrumbs_ties(
    target: LazyTensor, terms: Sequence[Term[Source]], parameters: Parameters
) -> LazyTensor:
    """Drop the largest and the smallest elements of each delta, and merge those of the elected
    sign.

    As `breadcrumbs`, with the election of `ties`.
    """
    return _merged(terms, parameters, agree=True)


def _merged(terms: Sequence[Term[Source]], parameters: Parameters, *, agree: bool) -> LazyTensor:
    values = [between(term.value, term.own.density, term.own.gamma, term.scaling) for term in terms]
    return merged(
        values,
        [term.scaling for term in terms],
        agree=agree,
        normalize=parameters.normalize,
        scale=parameters.lambda_,
    )
