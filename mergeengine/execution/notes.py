"""What is to be told of a chunk beside its bytes, for the run that goes on with it.

A note is JSON without white space, or empty. It goes where the chunk's digest goes, in one write,
so that whoever believes the chunk knows what was found when it was made:

    {"sums":[lost,added]}            what its rounding lost, where it is a sum (see ``precision``)
    {"not_finite":{...},"by":"allow"}    its infinities and NaN, and what was done about them

So the figures and warnings of a run that goes on are those of one that was never stopped.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeengine.compiler.graph import OutputTensor
from mergeengine.compiler.schedule import TensorSchedule
from mergeengine.execution.nonfinite import Guard, Input, NotFinite
from mergeengine.execution.precision import Precision, Sums

Strange = Mapping[int, Mapping[int, NotFinite]]
"""Of a block, by result and chunk."""


def notes_of(
    tensor: TensorSchedule,
    first: int,
    sums: Sequence[Sequence[Sums]],
    strange: Strange,
    guards: Sequence[Guard],
) -> list[list[str]]:
    """The notes of consecutive chunks, of each destination of a tensor; no list where there is
    nothing to be told."""
    notes: list[list[str]] = []
    for number, to in enumerate(tensor.destinations):
        measured = sums[number] if sums and tensor.write.is_sum(number) else ()
        found = strange.get(number, {})
        chunks = len(measured) or 1 + max(found, default=first - 1) - first
        documents: list[dict[str, Any]] = [{} for _ in range(chunks)]
        for document, pair in zip(documents, measured, strict=False):
            document["sums"] = pair
        for chunk, each in found.items():
            documents[chunk - first]["not_finite"] = _document(each)
            documents[chunk - first]["by"] = guards[to.model].on_nonfinite
        notes.append([_text(document) for document in documents])
    return notes


@dataclass(frozen=True, slots=True)
class Recall:
    """Takes the notes of chunks of one model that an earlier run made.

    ``outputs`` are the model's tensors, by their numbers.
    """

    model: int
    outputs: Sequence[OutputTensor]
    precision: Precision
    guard: Guard

    def __call__(self, tensor: int, chunk: int, note: str) -> bool:
        """Whether the chunk is as this run would make it, with nothing that is not known of it.

        Values that are not finite are another thing with every ``on_nonfinite``; what is finite
        is the same with each.
        """
        try:
            document = json.loads(note) if note else {}
            if self.precision.measures(self.model, tensor):
                lost, added = document["sums"]
                self.precision.put(self.model, tensor, chunk, (float(lost), float(added)))
            found = document.get("not_finite")
            if found is not None:
                if document["by"] != self.guard.on_nonfinite:
                    return False
                self.guard.add(tensor, chunk, _finding(self.outputs[tensor], found))
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            return False
        return True


def _document(found: NotFinite) -> dict[str, Any]:
    return {
        "count": found.count,
        "first": found.first,
        "inputs": sorted(found.inputs),
        "spread": sorted(found.spread),
        "overflowed": found.overflowed,
    }


def _finding(output: OutputTensor, document: Mapping[str, Any]) -> NotFinite:
    inputs, spread = (
        frozenset(Input(str(source), str(tensor)) for source, tensor in document[part])
        for part in ("inputs", "spread")
    )
    return NotFinite(
        tensor=output.name,
        dtype=output.dtype,
        shape=output.shape,
        count=int(document["count"]),
        first=int(document["first"]),
        inputs=inputs,
        spread=spread,
        overflowed=bool(document["overflowed"]),
    )


def _text(document: Mapping[str, Any]) -> str:
    # White space is only left inside of texts.
    text = json.dumps(document, separators=(",", ":")) if document else ""
    return text.replace(" ", "\\u0020")
