"""What masks do to the elements of one delta of one tensor."""

from collections.abc import Iterator, Mapping

from mergeengine.lazy import algebra
from mergeengine.lazy.tensor import LazyTensor
from mergeengine.lazy.weight import Weight, node_of
from mergeengine.methods.masking import masked, random_key
from mergeengine.values.actions import Applied, FileMask, Rows, in_order
from mergeengine.values.masks import MaskEntry
from mergeengine.values.references import ModelReference

Files = Mapping[ModelReference, Mapping[str, Weight]]
"""The tensors of each file of masks, by name."""


def actions_on(own: MaskEntry | None, of_plan: MaskEntry | None) -> tuple[Applied, ...]:
    """The actions of a source's entry and of the plan's, in the order in which they apply."""
    return in_order(own.actions if own else (), of_plan.actions if of_plan else ())


def misfits(
    tensor: Weight, files: Files, *entries: MaskEntry | None
) -> Iterator[tuple[str, str, str]]:
    """What of masks a tensor has no place for: sentence, line of the list, way out."""
    yield from _missing_rows(tensor, *entries)
    yield from _unfit_files(tensor, files, *entries)


def _missing_rows(tensor: Weight, *entries: MaskEntry | None) -> Iterator[tuple[str, str, str]]:
    """Rows that masks name and a tensor has not."""
    for entry in entries:
        for action in entry.actions if entry is not None else ():
            if isinstance(action, Rows) and (
                not tensor.shape or action.within(tensor.shape[0]) is None
            ):
                at = "the plan" if entry is None or entry.position is None else entry.position
                yield (
                    f"tensors have not all rows that a mask names ({at}: {action.text})",
                    f"{tensor.name}: {list(tensor.shape)}",
                    "rows count from 0; `match` limits a mask to the tensors that it means",
                )


def _unfit_files(
    tensor: Weight, files: Files, *entries: MaskEntry | None
) -> Iterator[tuple[str, str, str]]:
    """What files of masks lack or have in another shape."""
    for entry in entries:
        for action in entry.actions if entry is not None else ():
            if not isinstance(action, FileMask):
                continue
            found = files[action.file].get(tensor.name)
            if found is None and action.default is None:
                yield (
                    f"tensors have no mask in {action.file}",
                    tensor.name,
                    "`default: 1` beside `file` is for tensors without a mask",
                )
            if found is None:
                continue
            column = (*tensor.shape[:1], *(1 for _ in tensor.shape[1:]))
            if found.shape not in (tensor.shape, column) or found.dtype.category == "complex":
                yield (
                    f"masks in {action.file} do not fit their tensors",
                    f"{tensor.name}: {found.dtype} {list(found.shape)} for {list(tensor.shape)}",
                    "a mask has its tensor's shape, or one column of it (1 in every dimension but "
                    "the first)",
                )


def masked_delta(
    source: str,
    tensor: Weight,
    base: Weight,
    actions: tuple[Applied, ...],
    coefficient: float,
    seed: int,
    deltas: Mapping[str, LazyTensor],
    files: Files,
) -> LazyTensor:
    """A source's delta after ``actions``; ``deltas`` are those of all sources without any.

    Elements that are left out become the zero that times the coefficient is -0.0: to add it
    changes no value, not even -0.0.
    """
    if not actions:
        return deltas[source]

    def stored(mask: FileMask) -> LazyTensor:
        found = files[mask.file].get(tensor.name)
        if found is None:
            return LazyTensor(algebra.constant(1.0 if mask.default is None else mask.default))
        return LazyTensor(node_of(found))

    return masked(
        deltas[source],
        actions,
        shift=LazyTensor(node_of(tensor)) - LazyTensor(node_of(base)),
        others=deltas,
        stored=stored,
        key=lambda level: random_key(seed, source, level, tensor.name),
        zero=-0.0 if coefficient > 0 else 0.0,
    )
