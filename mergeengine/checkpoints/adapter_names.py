"""Finding an adapter's modules among a base's tensors, which may have a prefix more or less."""

from collections.abc import Mapping

from mergeengine.checkpoints.layouts import spelled
from mergeengine.lazy.weight import Weight

_LEVELS = 3  # of a prefix: `base_model.model.` is gone, `model.language_model.` may be there


class Names:
    """A base's tensors by name, and by the ends of their names where those are unambiguous."""

    def __init__(self, tensors: Mapping[str, Weight]) -> None:
        self._tensors = tensors
        self._ends: dict[str, str | None] | None = None
        self._newer: dict[str, str] | None = None

    def find(self, name: str) -> str | None:
        """The base's name of what an adapter calls ``name``; None where there is none."""
        shorter = name
        for _ in range(_LEVELS):
            if shorter in self._tensors:
                return shorter
            shorter = shorter.partition(".")[2]
            if "." not in shorter:
                break
        if self._ends is None:
            self._ends = {}
            for known in self._tensors:
                end = known
                for _ in range(_LEVELS):
                    end = end.partition(".")[2]
                    if "." not in end:
                        break
                    self._ends[end] = None if end in self._ends else known
        return self._ends.get(name)

    def respelled(self, name: str) -> str | None:
        """The base's name of what has ``name`` in its newer spelling (see ``layouts``)."""
        if self._newer is None:
            self._newer = {spelled(known): known for known in self._tensors}
        return self._newer.get(name)
