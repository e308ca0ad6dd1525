"""``vars`` and ``${name}``: values that are written once and used in several places.

``${env:NAME}`` is a variable of the environment, ``$$`` a dollar sign. Nothing is computed: a
value is put where its name stands, and nothing more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mergeengine.plan.document import MAX_DEPTH, MAX_NODES, Node, plain_scalar
from mergeengine.plan.problems import Problems
from mergeengine.values.excerpts import excerpt
from mergeengine.values.nearest import did_you_mean

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DOLLAR = re.compile(r"\$(?:(?P<twice>\$)|\{(?P<inside>[^{}]*)(?P<closed>\})?)?")
_WHOLE = re.compile(r"\$\{(?P<inside>[^{}]*)\}")
_ENVIRONMENT = "env:"
_MAX_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """The variables that a plan used, and their values; ``unused`` are those declared in vain."""

    variables: Mapping[str, Any]
    environment: Mapping[str, str]
    unused: tuple[str, ...]


def names_in(node: Node) -> set[str]:
    """The names of the variables that any text below `node` uses."""
    texts = (each.value for _, each in node.walk() if isinstance(each.value, str))
    return {
        inside for text in texts for each in _DOLLAR.finditer(text) if (inside := each["inside"])
    }


def substitute(root: Node, environment: Mapping[str, str], problems: Problems) -> Found:
    """Take ``vars`` out of the tree, and put values where their names stand.

    Mistakes join `problems`, and the tree is of no use then.
    """
    assert isinstance(root.value, dict)
    declared = _declared(root.value.pop("vars", None), problems)
    root.keys.pop("vars", None)
    known = {name: node for name, node in declared.items() if node.value is not None}
    work = _Substitution(known, environment, problems)
    used = names_in(root)
    for node in declared.values():
        used |= names_in(node)
    root.value = work.put(root, 0, ()).value
    return Found(
        {name: work.resolved[name].plain for name in sorted(work.used)},
        dict(sorted(work.read.items())),
        tuple(name for name in declared if name not in used),
    )


def escaped(value: Any) -> Any:
    """Plain data as a plan would have to write them: ``$$`` for a dollar sign."""
    match value:
        case str():
            return value.replace("$", "$$")
        case dict():
            return {key: escaped(child) for key, child in value.items()}
        case list():
            return [escaped(child) for child in value]
    return value


def _declared(node: Node | None, problems: Problems) -> dict[str, Node]:
    if node is None:
        return {}
    if not isinstance(node.value, dict):
        message = f"`vars`: expected a mapping of names to values, found {node.described}"
        problems.add(node.position, message)
        return {}
    for name, value in node.value.items():
        if not _NAME.fullmatch(name):
            problems.add(
                node.keys[name],
                f"`{excerpt(name)}` cannot be a variable's name: expected letters, digits and _",
            )
        if value.value is None:
            problems.add(value.position, f"the variable `{excerpt(name)}` has no value")
    return node.value


@dataclass(slots=True)
class _Substitution:
    declared: dict[str, Node]
    environment: Mapping[str, str]
    problems: Problems
    resolved: dict[str, Node] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    read: dict[str, str] = field(default_factory=dict)
    nodes: int = 0
    characters: int = 0

    def put(self, node: Node, depth: int, within: tuple[str, ...]) -> Node:
        """A tree with values in the place of names. `within`: the variables it is a value of."""
        self._count(node, depth)
        match node.value:
            case dict():
                children = {k: self.put(v, depth + 1, within) for k, v in node.value.items()}
                return replace(node, value=children)
            case list():
                return replace(node, value=[self.put(v, depth + 1, within) for v in node.value])
            case str() if "$" in node.value:
                return self._text(node, node.value, depth, within)
        return node

    def _text(self, node: Node, text: str, depth: int, within: tuple[str, ...]) -> Node:
        whole = _WHOLE.fullmatch(text)
        if whole is not None:
            found = self._value(whole["inside"], node, within)
            if found is None:
                return node
            found = self._copied(found, depth)
            origin = "" if whole["inside"].startswith(_ENVIRONMENT) else f", {found.position}"
            via = found.via or f"`{excerpt(text)}`{origin}"
            return replace(found, position=node.position, via=via)
        parts, end = [], 0
        for each in _DOLLAR.finditer(text):
            parts += [text[end : each.start()], self._part(each, node, within)]
            end = each.end()
        joined = "".join((*parts, text[end:]))
        self.characters += len(joined)
        if self.characters > _MAX_CHARACTERS:
            self.problems.add(node.position, "the variables make texts that no plan needs")
            raise self.problems.error()
        return replace(node, value=joined, written=joined)

    def _part(self, each: re.Match[str], node: Node, within: tuple[str, ...]) -> str:
        """What stands for one dollar sign inside a text."""
        if each["twice"]:
            return "$"
        if each["inside"] is None:
            way = "`${name}` is a variable, and `$$` a dollar sign"
            self.problems.add(node.position, f"a `$` by itself means nothing: {way}")
        elif each["closed"] is None:
            shown = excerpt(each[0], 30)
            self.problems.add(node.position, f"`{shown}` is never closed: expected `${{name}}`")
        else:
            found = self._value(each["inside"], node, within)
            if found is None or isinstance(found.value, dict | list):
                if found is not None:
                    self.problems.add(
                        node.position,
                        f"`{excerpt(each[0])}` is {found.described}, which cannot stand inside a "
                        "text",
                    )
                return ""
            return found.value if isinstance(found.value, str) else found.written
        return ""

    def _value(self, name: str, node: Node, within: tuple[str, ...]) -> Node | None:
        """The value of a variable with all names in it replaced; None, and why, without one."""
        shown = f"`${{{excerpt(name)}}}`"
        if name.startswith(_ENVIRONMENT):
            return self._from_environment(name.removeprefix(_ENVIRONMENT), node)
        if not _NAME.fullmatch(name):
            message = f"{shown}: expected `${{name}}` or `${{env:NAME}}`; nothing is computed"
        elif name in within:
            chain = " → ".join((*within[within.index(name) :], name))
            message = f"{shown}: this variable is made of itself ({chain})"
        elif name not in self.declared:
            message = f"{shown}: there is no variable `{excerpt(name)}`{self._hint(name)}"
        elif len(within) >= MAX_DEPTH:
            message = f"{shown}: variables are made of variables more than {MAX_DEPTH} times"
        else:
            self.used.add(name)
            if name not in self.resolved:
                self.resolved[name] = self.put(self.declared[name], 0, (*within, name))
            return self.resolved[name]
        self.problems.add(node.position, message)
        return None

    def _from_environment(self, name: str, node: Node) -> Node | None:
        value = self.environment.get(name) if _NAME.fullmatch(name) else None
        if value is None:
            self.problems.add(
                node.position,
                f"`${{env:{excerpt(name)}}}`: the environment has no variable `{excerpt(name)}`"
                f"{did_you_mean(name, self.environment)}",
            )
            return None
        self.read[name] = value
        return Node(node.position, plain_scalar(value), value, via=f"`${{env:{name}}}`")

    def _hint(self, name: str) -> str:
        hint = did_you_mean(name, self.declared)
        if hint:
            return hint
        if name in self.environment:
            return f"; the environment's is `${{env:{name}}}`"
        if not self.declared:
            return "; declare it under `vars`"
        return f"; `vars` has {excerpt(', '.join(self.declared))}"

    def _copied(self, node: Node, depth: int) -> Node:
        """Each use is a tree of its own."""
        self._count(node, depth)
        match node.value:
            case dict():
                children = {key: self._copied(v, depth + 1) for key, v in node.value.items()}
                return replace(node, value=children, keys=dict(node.keys))
            case list():
                return replace(node, value=[self._copied(v, depth + 1) for v in node.value])
        return node

    def _count(self, node: Node, depth: int) -> None:
        """Variables within variables grow as aliases do."""
        self.nodes += 1
        if self.nodes > 2 * MAX_NODES or depth > MAX_DEPTH:
            self.problems.add(node.position, "the variables make more values than any plan needs")
            raise self.problems.error()
