"""``foreach`` and variables: a chain's steps with every name replaced by its value.

A text of a chain knows the chain's variables, and inside a ``foreach`` the loop's. ``vars`` in a
plan of the chain set variables of the files that the plan includes.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from mergeengine.plan.document import Node
from mergeengine.plan.problems import Problems
from mergeengine.plan.variables import names_in, substitute

MOST_STEPS = 500


@dataclass(slots=True)
class Written:
    """The variables that a chain used, and their values."""

    variables: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


def write_out(root: Node, environment: Mapping[str, str], problems: Problems) -> Written:
    """Replace variables and write out each ``foreach``, in place; mistakes join `problems`."""
    assert isinstance(root.value, dict)
    declared = root.value.pop("vars", None)
    root.keys.pop("vars", None)
    used = names_in(root)
    work = _Writing(declared, environment, problems)
    steps = root.value.pop("steps", None)
    root.value = work.replaced(Node(root.position, root.value, keys=root.keys), {}).value
    assert isinstance(root.value, dict)
    if steps is not None:
        if isinstance(steps.value, list):
            steps = Node(steps.position, work.steps(steps.value, {}))
        root.value["steps"] = steps
    names: dict[str, Node] = {}
    if declared is not None and isinstance(declared.value, dict):
        names = declared.value
        used |= {name for node in names.values() for name in names_in(node)}
    work.found.unused = tuple(name for name in names if name not in used)
    return work.found


@dataclass(slots=True)
class _Writing:
    declared: Node | None
    environment: Mapping[str, str]
    problems: Problems
    found: Written = field(default_factory=Written)
    count: int = 0

    def replaced(self, node: Node, loop: Mapping[str, Node]) -> Node:
        """A tree with values in the place of names; ``loop`` are variables of this place only."""
        variables = deepcopy(self.declared)
        if loop and (variables is None or isinstance(variables.value, dict)):
            known = variables or Node(node.position, {})
            assert isinstance(known.value, dict)
            places = {name: value.position for name, value in loop.items()}
            variables = Node(known.position, {**known.value, **loop}, keys={**known.keys, **places})
        parts = {"inside": deepcopy(node)}
        if variables is not None:
            parts["vars"] = variables
        around = Node(node.position, parts, keys=dict.fromkeys(parts, node.position))
        found = substitute(around, self.environment, self.problems)
        outside = {name: value for name, value in found.variables.items() if name not in loop}
        self.found.variables.update(outside)
        self.found.environment.update(found.environment)
        inside = around.get("inside")
        assert inside is not None
        return inside

    def steps(self, nodes: list[Node], loop: Mapping[str, Node]) -> list[Node]:
        written: list[Node] = []
        for node in nodes:
            if node.get("foreach") is None:
                self.count += 1
                if self.count > MOST_STEPS:
                    message = f"the chain has more than {MOST_STEPS} steps"
                    self.problems.add(node.position, message)
                    raise self.problems.error()
                written.append(self.replaced(node, loop))
            else:
                written += self._each(node, loop)
        return written

    def _each(self, node: Node, loop: Mapping[str, Node]) -> list[Node]:
        """The steps of a ``foreach`` for each combination of its values."""
        assert isinstance(node.value, dict)
        for key in node.value:
            if key not in ("foreach", "steps"):
                message = f"`{key}` cannot stand beside `foreach`; it belongs inside its `steps`"
                self.problems.add(node.keys[key], message)
        steps = node.get("steps")
        if steps is None or not isinstance(steps.value, list) or not steps.value:
            place = node.position if steps is None else steps.position
            self.problems.add(place, "`foreach` needs `steps`: a list of what is done for each")
            return []
        over = self.replaced(node.value["foreach"], loop)
        if not isinstance(over.value, dict) or not over.value:
            message = "`foreach`: expected names with lists of values, as {language: [de, fr]}"
            self.problems.add(over.position, f"{message}, found {over.described}")
            return []
        for name, values in over.value.items():
            if not isinstance(values.value, list) or not values.value:
                message = f"`foreach.{name}`: expected a list of values, found {values.described}"
                self.problems.add(values.position, message)
                return []
        written: list[Node] = []
        lists = [values.value for values in over.value.values() if isinstance(values.value, list)]
        for chosen in product(*lists):
            inner = {**loop, **dict(zip(over.value, chosen, strict=True))}
            written += self.steps(steps.value, inner)
        return written
