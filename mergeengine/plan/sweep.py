"""``--sweep key=value,value,...``: several versions of a plan, one for each value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from mergeengine.errors import PlanError

MOST = 256
_OPENING, _CLOSING = "[{(", "]})"


@dataclass(frozen=True, slots=True)
class Variant:
    """One combination of a sweep's values: ``--set`` texts, and a name made of them."""

    overrides: tuple[str, ...]
    name: str


def variants(sweeps: Sequence[str]) -> list[Variant]:
    """Every combination of the values of ``sweeps`` (``["scaling=0.3,0.5"]``), in order.

    Commas inside brackets or quotes belong to a value: ``scaling=0.5,[0.2,1.0]`` are two.
    PlanError for what is no sweep, a value given twice, or an ``output.path``, which is made of
    the values.
    """
    axes = [_axis(text) for text in sweeps]
    keys = [key for key, _ in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise PlanError(f"--sweep: `{key}` is given twice; write all its values in one")
    found = [
        Variant(
            tuple(f"{key}={value}" for key, value in zip(keys, values, strict=True)),
            "-".join(
                f"{_short(key)}-{_plain(value)}" for key, value in zip(keys, values, strict=True)
            ),
        )
        for values in product(*(values for _, values in axes))
    ]
    if len(found) > MOST:
        raise PlanError(f"--sweep: {len(found)} outputs; {MOST} at most are made at once")
    names: dict[str, Variant] = {}
    for variant in found:
        other = names.setdefault(variant.name, variant)
        if other is not variant:
            raise PlanError(
                f"--sweep: {' '.join(other.overrides)} and {' '.join(variant.overrides)} would "
                f"both be called {variant.name}"
            )
    return found


def _axis(text: str) -> tuple[str, list[str]]:
    key, equals, rest = text.partition("=")
    key, values = key.strip(), _split(rest)
    if not equals or not key or not all(values):
        raise PlanError(f"--sweep {text}: expected key=value,value,..., as scaling=0.3,0.5,1.0")
    if key.split(".")[0] in ("output", "name", "version") and key != "output.dtype":
        raise PlanError(f"--sweep {text}: `{key}` cannot be swept; outputs are named by the values")
    return key, values


def _split(text: str) -> list[str]:
    """At commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if character == "," and not depth and not quote:
            parts.append("")
            continue
        parts[-1] += character
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in _OPENING) - (character in _CLOSING)
    return [part.strip() for part in parts]


def _short(key: str) -> str:
    """``scaling``, ``sources-1-scaling``: with the number of an entry goes what it is one of."""
    steps = key.split(".")
    return "-".join(steps[-3:] if len(steps) > 2 and steps[-2].isdigit() else steps[-1:])


def _plain(value: str) -> str:
    """What every file system takes, and a shell without quotes."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", value).strip("._") or "_"
