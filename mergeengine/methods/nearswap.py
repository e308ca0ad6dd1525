"""NearSwap: take over what is near already."""

from collections.abc import Sequence
from dataclasses import dataclass

from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.registry import Nothing, Term, method, number


@dataclass(frozen=True, slots=True)
class Parameters:
    t: float = number(0.001, "the most that an element changes", least=0)


@method(
    "nearswap",
    paper="alchemonaut 2024, QuartetAnemoi-70B-t0.0001 (model card)",
    parameters=Parameters,
    weighted=False,
    sources=(1, 1),
)
def nearswap(
    target: LazyTensor, terms: Sequence[Term[Nothing]], parameters: Parameters
) -> LazyTensor:
    """Add the delta, no element of it by more than `t`.

    target + min(1, t / |δ|) · δ.
    """
    delta = terms[0].value
    if parameters.t == 0:
        return delta * 0.0
    size = abs(delta)
    return (size > parameters.t).where(delta.sign() * parameters.t, delta)
