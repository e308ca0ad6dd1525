"""How much of the deltas survived the rounding to the output's dtype.

The realised-delta error of an output tensor is ‖out − target − αΔ‖ / ‖αΔ‖, with αΔ the sum of all
applied deltas, masks included: what rounding changed, relative to what was to be added. Both norms
are of a sample, the first ``SAMPLE`` elements of every chunk (a 32nd of a large tensor). Elements
that are not finite are left out.

The sums of squares are float64, added in one order: by halving within ``VECTOR`` elements, then
these, then chunks, each in turn. So they are the same for any workers and blocks, for the compiled
loop (``measure`` in ``native/vector.h``) and for torch (``execution.sampling``).
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

from mergeengine.compiler.schedule import Schedule, TensorSchedule
from mergeengine.lazy.dtypes import DType

Sums = tuple[float, float]
"""Of squares, of a chunk's sample: what rounding changed, and what was added."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What rounding changed of one output tensor. ``lost`` and ``added`` are sums of squares."""

    tensor: str
    dtype: DType
    lost: float
    added: float


def error_of(lost: float, added: float) -> float | None:
    """The realised-delta error of sums of squares; None where nothing was added."""
    if not added or not isfinite(added) or not isfinite(lost):
        return None
    return sqrt(lost / added)


class Precision:
    """Gathers the sums of an output's chunks, from many threads."""

    def __init__(self, schedule: Schedule) -> None:
        self._sums: dict[tuple[int, int], array[float]] = {}
        self._outputs: dict[tuple[int, int], tuple[str, DType]] = {}
        for tensor in schedule.tensors:
            for number, to in enumerate(tensor.destinations):
                if tensor.write.is_sum(number):
                    key = to.model, to.tensor
                    self._outputs[key] = to.output.name, to.output.dtype
                    self._sums[key] = array("d", bytes(16 * tensor.write.chunks))

    def add(self, tensor: TensorSchedule, first: int, sums: Sequence[Sequence[Sums]]) -> None:
        """Take the sums of consecutive chunks, of each destination of a tensor."""
        for to, found in zip(tensor.destinations, sums, strict=True):
            if self.measures(to.model, to.tensor):
                for chunk, each in enumerate(found, first):
                    self.put(to.model, to.tensor, chunk, each)

    def measures(self, model: int, tensor: int) -> bool:
        """Whether an output tensor is a sum."""
        return (model, tensor) in self._sums

    def put(self, model: int, tensor: int, chunk: int, sums: Sums) -> None:
        """Take the sums of one chunk of a tensor that is a sum."""
        of_tensor = self._sums[model, tensor]
        of_tensor[2 * chunk], of_tensor[2 * chunk + 1] = sums

    def of(self, model: int) -> list[Loss]:
        """The losses of a model's tensors that are sums, in their order."""
        losses = []
        for key in sorted(self._sums):
            if key[0] == model:
                lost = added = 0.0
                for chunk in range(0, len(self._sums[key]), 2):  # not sum(), which compensates
                    lost += self._sums[key][chunk]
                    added += self._sums[key][chunk + 1]
                losses.append(Loss(*self._outputs[key], lost, added))
        return losses
