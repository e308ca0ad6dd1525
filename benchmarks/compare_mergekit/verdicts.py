"""What came of a case, and what is promised of each method."""

from __future__ import annotations

from dataclasses import dataclass

RANDOM = ("dare_linear", "dare_ties", "della_linear", "della")
BITS = ("passthrough", "linear", "task_arithmetic")
RANKED = ("ties", "breadcrumbs", "breadcrumbs_ties")
EXACT_WANTED = (
    "slerp",
    "nuslerp",
    "multislerp",
    "karcher",
    "model_stock",
    "nearswap",
    "sce",
    "ram",
)
"""Methods in which mergekit rounds on the way what is rounded once here: who is how far from what
float64 gives?"""

_MOST_DEVIATIONS = 5.0


@dataclass(slots=True)
class Verdict:
    """What came of a case. Counts are of elements; ``ties`` were not compared with the others.

    ``theirs_off`` and ``ours_off`` are the largest distances from what float64 gives;
    ``deviations`` is the largest of the statistics, in standard deviations.
    """

    case: str
    method: str
    dtype: str
    tensors: int = 0
    elements: int = 0
    same: int = 0
    within: int = 0
    ties: int = 0
    furthest: float = 0.0
    theirs_off: float | None = None
    ours_off: float | None = None
    deviations: float | None = None
    problem: str = ""

    @property
    def kept(self) -> bool:
        """Whether it is what is promised of the method."""
        if self.problem:
            return False
        if self.method in RANDOM:
            return self.deviations is not None and self.deviations <= _MOST_DEVIATIONS
        if self.method in (*BITS, *RANKED):
            return self.same == self.elements
        return True
