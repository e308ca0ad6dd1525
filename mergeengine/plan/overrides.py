"""``--set key=value``: values that replace or add to those of the plan's file."""

from __future__ import annotations

import re
from contextlib import suppress

from mergeengine.errors import PlanError
from mergeengine.plan.document import Node, read_yaml
from mergeengine.plan.problems import Problems
from mergeengine.plan.schema import PlanKeys
from mergeengine.values.excerpts import excerpt
from mergeengine.values.positions import Position

_INDEX = re.compile("[0-9]{1,9}")


def apply_override(root: Node, override: str, problems: Problems) -> None:
    """Put the value of ``a.b.0=value`` into the tree; its nodes say ``--set a.b.0=value``.

    A variable may be named without its ``vars.`` where no key of plans has its name.
    """
    place = Position(f"--set {override}", 0, 0)
    key, equals, text = override.partition("=")
    steps = [step.strip() for step in key.split(".")]
    if not equals or not all(steps):
        problems.add(place, "expected key=value, for example --set scaling=0.5")
        return
    if steps[0] == "include":
        problems.add(place, "`include` cannot be set; what it brings can be, key by key")
        return
    variables = root.get("vars")
    if steps[0] not in PlanKeys.model_fields and variables and variables.get(steps[0]):
        steps.insert(0, "vars")
    # A value that is not valid YAML has joined the problems by then.
    with suppress(PlanError):
        value = read_yaml(text, lambda _: place, problems) or Node(place, None)
        _put(root, steps, value, place, problems)


def _put(root: Node, steps: list[str], value: Node, place: Position, problems: Problems) -> None:
    node = root
    for number, step in enumerate(steps):
        here = ".".join(steps[:number])
        last = number == len(steps) - 1
        if isinstance(node.value, list):
            if not _INDEX.fullmatch(step) or int(step) >= len(node.value):
                problems.add(
                    place, f"`{here}` has no entry `{excerpt(step)}`: {_entries(node.value)}"
                )
                return
            if last:
                node.value[int(step)] = value
                return
            node = node.value[int(step)]
            continue
        if not isinstance(node.value, dict):
            problems.add(place, f"`{excerpt(here)}` has no keys: it is {node.described}")
            return
        if last:
            node.value[step], node.keys[step] = value, place
            return
        if step not in node.value:
            node.value[step], node.keys[step] = Node(place, {}), place
        node = node.value[step]


def _entries(entries: list[Node]) -> str:
    if not entries:
        return "it is empty"
    return "it has only 0" if len(entries) == 1 else f"it has 0 to {len(entries) - 1}"
