"""What a run says of its numbers: what rounding lost, and infinities and NaN."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from math import fsum
from typing import TYPE_CHECKING, Any

from mergeengine.errors import CheckpointError
from mergeengine.execution.precision import Loss, error_of
from mergeengine.lazy.partition import CHUNK, SAMPLE
from mergeengine.output.manifest import Model

if TYPE_CHECKING:
    from mergeengine.execution.nonfinite import Input, NotFinite

MOST_LOST = 0.25
"""The realised-delta error that is warned of. Rounding to bfloat16 is normal up to a fifth: 4.5 %
where a delta of 1 % of the weights is added as it is, 20 % where it is scaled; a delta of 0.3 %,
scaled, loses 37 %, and then what is left of it is no longer what was asked for."""

SHARE = 0.1
"""Single tensors that lose more count where they hold this part of all that was added (squares):
biases and norms near 1 lose theirs often, and matter little."""

_SHOWN = 5


def precision_of(losses: Sequence[Loss], merged: Iterable[str]) -> dict[str, Any]:
    """What a report says of the rounding of one output; errors are None where nothing was added.

    Of the ``merged`` tensors those without a loss, which are written as no sums (in 8 bits again),
    are not measured.
    """
    measured = {loss.tensor for loss in losses}
    return {
        "sample": f"the first {SAMPLE} of every {CHUNK} elements",
        "error": _overall(losses),
        "dtypes": {name: _overall(group) for name, group in _by_dtype(losses).items()},
        "tensors": {loss.tensor: error_of(loss.lost, loss.added) for loss in losses},
        "not_measured": [name for name in merged if name not in measured],
    }


def precision_warnings(losses: Sequence[Loss]) -> list[str]:
    """Where much of the deltas is lost, and the way out."""
    warnings = []
    for dtype, group in _by_dtype(losses).items():
        wider = {"float32": "float64", "float64": None}.get(dtype, "float32")
        way_out = f"; `output.dtype: {wider}` keeps it" if wider else ""
        overall = _overall(group)
        if overall is None:
            continue
        if overall > MOST_LOST:
            warnings.append(
                f"rounding to {dtype} changed the result by {overall:.0%} of what was added to the "
                "target: the deltas are so small beside the weights that much of them is lost"
                f"{way_out} (measured on a sample)"
            )
            continue
        bad = [loss for loss in group if (error_of(loss.lost, loss.added) or 0) > MOST_LOST]
        if fsum(loss.added for loss in bad) > SHARE * fsum(loss.added for loss in group):
            warnings.append(
                f"rounding to {dtype} changed {_listed([loss.tensor for loss in bad])} by more "
                f"than {MOST_LOST:.0%} of what was added to them{way_out} (measured on a sample)"
            )
    return warnings


def not_finite_error(
    found: "NotFinite", lacks_target: bool, models: Iterable[Model]
) -> CheckpointError:
    """The error of the first such elements; ``lacks_target``: of those that cannot be kept."""
    if lacks_target:
        text = (
            f"{_described(found, models)}. `on_nonfinite: keep_target` has nothing to keep there: "
            "the target's own values are no finite numbers"
        )
        ways = ["`on_nonfinite: allow` writes them as they are"]
    else:
        text = _described(found, models)
        ways = [
            "`on_nonfinite: keep_target` takes the target's values for these elements",
            "`allow` writes them as they are",
        ]
    if found.overflowed and found.dtype.itemsize < 4:
        ways.insert(0, "`output.dtype: float32` has room for larger values")
    return CheckpointError(f"{text}. {'; '.join(ways)}")


def not_finite_warnings(
    findings: "Sequence[NotFinite]", models: Iterable[Model], *, kept: bool
) -> list[str]:
    """What was written all the same, a line a tensor at first."""
    models = list(models)
    did = (
        "these elements are the target's, as `on_nonfinite: keep_target` says"
        if kept
        else "they were written as they are, and such a model is of no use"
    )
    warnings = [f"{_described(found, models)}; {did}" for found in findings[:_SHOWN]]
    rest = [found.tensor for found in findings[_SHOWN:]]
    if rest:
        warnings.append(f"the same in {len(rest)} more tensors: {_listed(rest)}")
    return warnings


def _described(found: "NotFinite", models: Iterable[Model]) -> str:
    index, position = [], found.first
    for size in reversed(found.shape):
        position, at = divmod(position, size)
        index.append(at)
    place = ", ".join(map(str, reversed(index)))
    what = "1 computed value is" if found.count == 1 else f"{found.count} computed values are"
    first = f"at [{place}]" if found.count == 1 else f"the first at [{place}]"
    roles = _roles(models)
    causes = []
    if found.inputs:
        causes.append(f"{_inputs(found.inputs, found.tensor, roles)} there")
    if found.spread:
        causes.append(
            f"{_inputs(found.spread, found.tensor, roles)} elsewhere, which a norm, a sum or a "
            "matrix product spreads"
        )
    if found.overflowed:
        beside = " elsewhere" if causes else ""
        causes.append(f"no input has such values{beside}: these left the range of {found.dtype}")
    return f"{found.tensor}: {what} infinite or NaN, {first}: {'; '.join(causes)}"


def _inputs(inputs: "Iterable[Input]", tensor: str, roles: Mapping[str, str]) -> str:
    """Who has such values, in the order of the roles: with the name of the tensor where that is
    not the output's, as of scales."""
    order = list(roles)
    known = sorted(i for i in inputs if i.source in roles)
    known.sort(key=lambda each: order.index(each.source))
    names = [
        ("" if each.tensor == tensor else f"{each.tensor} of ")
        + f"{roles.get(each.source, 'an input')} ({each.source})"
        for each in (*known, *sorted(i for i in inputs if i.source not in roles))
    ]
    verb = "has" if len(names) == 1 else "have"
    return f"{_listed(names, ' and ')} {verb} such values"


def _roles(models: Iterable[Model]) -> dict[str, str]:
    """Reference as written -> the roles that it plays."""
    roles: dict[str, list[str]] = {}
    for model in models:
        roles.setdefault(model.reference, []).append(model.role)
    return {reference: " and ".join(played) for reference, played in roles.items()}


def _by_dtype(losses: Sequence[Loss]) -> dict[str, list[Loss]]:
    ordered = sorted(losses, key=lambda loss: loss.dtype.name)
    return {name: list(group) for name, group in groupby(ordered, lambda loss: loss.dtype.name)}


def _overall(losses: Sequence[Loss]) -> float | None:
    return error_of(fsum(loss.lost for loss in losses), fsum(loss.added for loss in losses))


def _listed(names: Sequence[str], between: str = ", ") -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{between.join(names[:_SHOWN])}{more}"
