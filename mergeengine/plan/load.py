"""Reading a plan: a file or a text becomes a `Plan`, or one `PlanError` that tells all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mergeengine.errors import PlanError
from mergeengine.plan.build import build
from mergeengine.plan.document import place_in, read_yaml
from mergeengine.plan.overrides import apply_override
from mergeengine.plan.plan import Plan
from mergeengine.plan.problems import Problems
from mergeengine.plan.validate import validate
from mergeengine.units import format_binary_size
from mergeengine.values.nearest import did_you_mean
from mergeengine.values.positions import Position

MAX_BYTES = 1 << 20


def load_plan(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Plan:
    """Read and check the plan file `path`; `overrides` are ``--set`` texts (``scaling=0.5``).

    Opens no model and asks no hub. PlanError with every problem found, each as
    ``file:line:column: message``; the file is named as `path` names it.
    """
    shown = os.fspath(path)
    return _parse(_read(Path(path), shown), Path(path), shown, overrides)


def parse_plan(text: str, file: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Plan:
    """As `load_plan`, for a text that stands in `file`, which need not exist."""
    return _parse(text, Path(file), os.fspath(file), overrides)


def _parse(text: str, file: Path, shown: str, overrides: Sequence[str]) -> Plan:
    text = text.removeprefix("\ufeff")
    problems = Problems(text)
    root = read_yaml(text, place_in(shown), problems)
    start = Position(shown, 1, 1)
    if root is None:
        raise PlanError(f"{start}: the plan is empty; it begins with `version: 1`")
    if not isinstance(root.value, dict):
        message = f"expected a plan: lines of `key: value`, found {root.described}"
        problems.add(root.position, message)
        raise problems.error()
    if root.get("merge_method") is not None:
        raise PlanError(f"{root.keys['merge_method']}: {_MERGEKIT}")
    for override in overrides:
        apply_override(root, override, problems)
    keys = validate(root, problems)
    if keys is None:
        raise problems.error()
    return build(keys, root, text, file)


_MERGEKIT = (
    "this is a mergekit configuration, not a mergeengine plan; a plan names the models as "
    "`target`, `source_base` and `source_ft`, and begins with `version: 1`"
)


def _read(path: Path, shown: str) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise PlanError(f"{shown}: there is no such file{_similar(path)}") from None
    except IsADirectoryError:
        raise PlanError(f"{shown}: this is a folder; give the plan's file") from None
    except (OSError, ValueError) as failure:
        reason = getattr(failure, "strerror", None) or failure
        raise PlanError(f"{shown}: cannot be read: {reason}") from None
    if b"\0" in content[:8192]:
        raise PlanError(f"{shown}: this is a binary file; a plan is a YAML text")
    if len(content) > MAX_BYTES:
        limit = format_binary_size(MAX_BYTES)
        raise PlanError(f"{shown}: the file is larger than {limit}, which no plan is")
    try:
        return content.decode()
    except UnicodeDecodeError as failure:
        before = content[: failure.start]
        position = Position(shown, before.count(b"\n") + 1, failure.start - before.rfind(b"\n"))
        raise PlanError(f"{position}: this is not UTF-8; save the plan as UTF-8 text") from None


def _similar(path: Path) -> str:
    try:
        siblings = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    except OSError:
        return ""
    meant = did_you_mean(path.name, siblings)
    return meant.replace("`", f"`{path.parent}/", 1) if meant and path.parent.name else meant
