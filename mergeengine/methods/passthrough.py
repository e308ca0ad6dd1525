"""One model as it is."""

from collections.abc import Sequence

from mergeengine.lazy.tensor import LazyTensor
from mergeengine.methods.registry import Nothing, Term, method


@method(
    "passthrough",
    paper="none: the identity",
    space="both",
    sources=(1, 1),
)
def passthrough(
    target: LazyTensor, terms: Sequence[Term[Nothing]], parameters: Nothing
) -> LazyTensor:
    """Take the tensors of one model, times `scaling`.

    With a scaling of 1 its bytes are copied.
    """
    return terms[0].scaling * terms[0].value
