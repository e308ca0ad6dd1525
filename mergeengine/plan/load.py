"""Reading a plan: a file or a text becomes a `Plan`, or one `PlanError` that tells all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mergeengine.errors import PlanError
from mergeengine.plan.build import build
from mergeengine.plan.document import Node, place_in, read_yaml
from mergeengine.plan.files import text_of
from mergeengine.plan.include import lay_under
from mergeengine.plan.overrides import apply_override
from mergeengine.plan.plan import Plan, Substituted
from mergeengine.plan.problems import Problems
from mergeengine.plan.validate import validate
from mergeengine.plan.variables import names_in, substitute
from mergeengine.values.nearest import did_you_mean
from mergeengine.values.positions import Position
from mergeengine.values.references import without_secrets


def load_plan(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Plan:
    """Read and check the plan file `path`; `overrides` are ``--set`` texts (``scaling=0.5``).

    Opens no model and asks no hub. PlanError with every problem found, each as
    ``file:line:column: message``; the file is named as `path` names it.
    """
    return parse_plan(text_of(path), path, overrides)


def parse_plan(text: str, file: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Plan:
    """As `load_plan`, for a text that stands in `file`, which need not exist."""
    shown, text = os.fspath(file), text.removeprefix("\ufeff")
    problems = Problems()
    problems.open(shown, text)
    root = read_yaml(text, place_in(shown), problems)
    start = Position(shown, 1, 1)
    if root is None:
        raise PlanError(f"{start}: the plan is empty; it begins with `version: 1`")
    if not isinstance(root.value, dict):
        message = f"expected a plan: lines of `key: value`, found {root.described}"
        problems.add(root.position, message)
        raise problems.error()
    if root.get("merge_method") is not None:
        told = _BOTH if root.get("version") is not None else _MERGEKIT
        raise PlanError(f"{root.keys['merge_method']}: {told}")
    return plan_of(root, text, file, overrides, problems)


def plan_of(
    root: Node,
    text: str,
    file: str | os.PathLike[str],
    overrides: Sequence[str],
    problems: Problems,
) -> Plan:
    """The plan that a tree is, whatever it was made of; ``text`` is what the user wrote."""
    shown, file = os.fspath(file), Path(file)
    known = len(problems.found)
    includes = lay_under(root, file, shown, problems)
    if len(problems.found) > known:  # what is missing now may be in a file that was not read
        raise problems.error()
    written = names_in(root)  # what --set leaves unused is no slip of the pen
    for override in overrides:
        apply_override(root, override, problems)
    declared = root.get("vars")
    known = len(problems.found)
    found = substitute(root, os.environ, problems)
    if len(problems.found) > known:
        raise problems.error()
    unused = {
        name: declared.keys[name]
        for name in found.unused
        if name not in written and declared is not None
    }
    for name, at in unused.items():
        if not at.line:
            hint = did_you_mean(name, written)
            problems.add(at, f"no text of the plan has `${{{name}}}`{hint}")
    keys = validate(root, problems)
    if keys is None:
        raise problems.error()
    substituted = Substituted(
        without_secrets(found.variables, root.plain),
        without_secrets(found.environment, root.plain),
        includes,
    )
    return build(keys, root, text, file, substituted, tuple(_unused(unused, shown)))


def _unused(unused: dict[str, Position], shown: str) -> Iterator[str]:
    """Included files may declare more than one plan needs; its own file should not."""
    for name, at in unused.items():
        if at.file == shown:
            yield f"{at}: the variable `{name}` is never used: `${{{name}}}` would use it"


_MERGEKIT = "this is a mergekit configuration, not a plan; `mergeengine convert` makes a plan of it"
_BOTH = (
    "a plan's `method` is what mergekit calls `merge_method`; its configurations have no `version`"
)
