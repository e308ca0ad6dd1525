"""Which rows of which models the output's rows are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.errors import CheckpointError

Places = tuple[int, ...]
"""For each row of the output the row of one model, or -1."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The rows of the output, and which rows of the models they are.

    ``target`` are the rows that the target has, and for each source ``own`` those that its
    fine-tune has, ``before`` and ``after`` those whose difference is added. A row that a model
    lacks is the mean of those in ``others``, and zeros where none of them has it. The last
    ``means`` rows are the mean of all before them.
    """

    size: int
    target: Places
    before: tuple[Places, ...]
    after: tuple[Places, ...]
    own: tuple[Places, ...]
    others: Mapping[Checkpoint, Places]
    counts: dict[str, int]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    means: int = 0


def where(rows: Places, chosen: Sequence[bool]) -> Places:
    return tuple(row if is_so else -1 for row, is_so in zip(rows, chosen, strict=True))


def without(rows: Places, lost: Iterable[int]) -> Places:
    left = list(rows)
    for row in lost:
        left[row] = -1
    return tuple(left)


def padded_to_fine_tune(
    sizes: dict[Checkpoint, int],
    target: Checkpoint,
    bases: Sequence[Checkpoint],
    fts: Sequence[Checkpoint],
) -> Arrangement | None:
    """As the code of the fine-tuning transfer paper has it (Lin et al. 2025, arXiv:2503.20110):
    target and base get rows of zeros up to the fine-tune's, all rows by their index. So rows that
    only the fine-tune has come out multiplied by the scaling."""
    size = sizes[fts[0]]
    longer = [model for model in sizes if sizes[model] > size]
    longer += [ft for ft in dict.fromkeys(fts) if sizes[ft] < size]
    if longer:
        lines = "".join(f"\n    {model}: {sizes[model]} rows" for model in (fts[0], *longer))
        raise CheckpointError(
            "`compatibility: finetuning-transfer` pads embeddings to the fine-tune's rows, and "
            f"these do not fit:{lines}\n  `vocabulary: align` matches rows by their tokens"
        )
    if all(other == size for other in sizes.values()):
        return None

    def padded(model: Checkpoint) -> Places:
        return (*range(sizes[model]), *[-1] * (size - sizes[model]))

    own = tuple(map(padded, fts))
    added = size - sizes[target]
    note = f"vocabulary: the target gets {added} rows of zeros, as finetuning-transfer has it"
    return Arrangement(
        size=size,
        target=padded(target),
        before=tuple(map(padded, bases)),
        after=own,
        own=own,
        others={},
        counts={"rows": size, "delta": size, "copied": 0, "kept": 0, "padding": 0},
        notes=(note,),
        warnings=(),
    )
