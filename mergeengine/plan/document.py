"""YAML text to a tree of plain values that know where they are written.

The values are those of YAML 1.2's core schema: ``1e-3`` and ``.5`` are numbers, only ``true`` and
``false`` are booleans (``yes`` and ``on`` are texts), dates are texts. Tags are refused, so
nothing in a plan can name a Python object; so are merge keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from yaml.composer import Composer
from yaml.error import Mark, MarkedYAMLError
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, ScalarNode, SequenceNode
from yaml.nodes import Node as YamlNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from mergeengine.plan.problems import Problems
from mergeengine.plan.syntax import explain_syntax
from mergeengine.values.decisions import number_text
from mergeengine.values.excerpts import excerpt
from mergeengine.values.positions import Position

# Far beyond any real plan; they bound time and memory for hostile ones, aliases expanded.
MAX_DEPTH = 32
MAX_NODES = 20_000
_MAX_DIGITS = 100

Scalar = None | bool | int | float | str
Path = tuple[str | int, ...]
Place = Callable[[Mark], Position]


@dataclass(slots=True)
class Node:
    """A value of the plan. `keys` says where each key of a mapping is written, and `via` which
    variable the value was taken from. Keys are texts: of a whole number, as it is written."""

    position: Position
    value: Scalar | list[Node] | dict[str, Node]
    written: str = ""
    keys: dict[str, Position] = field(default_factory=dict)
    via: str = ""

    @property
    def plain(self) -> Any:
        """The value without positions."""
        if isinstance(self.value, dict):
            return {key: child.plain for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain for child in self.value]
        return self.value

    @property
    def described(self) -> str:
        """For ``expected a number, found ...``."""
        return f"{self._kind} ({self.via})" if self.via else self._kind

    @property
    def _kind(self) -> str:
        match self.value:
            case None:
                return "nothing"
            case dict():
                return "a mapping"
            case list():
                return "a list" if self.value else "an empty list"
            case str():
                return f"the text '{excerpt(self.value)}'"
            case bool():
                return "true" if self.value else "false"
            case _:
                return f"the number {excerpt(self.written or number_text(self.value))}"

    def get(self, key: str) -> Node | None:
        """The child of that key, where this is a mapping that has it."""
        return self.value.get(key) if isinstance(self.value, dict) else None

    def at(self, path: Path) -> Node:
        """The node at `path`, or the last one on the way that exists."""
        node = self
        for step in path:
            inside: Node | None = None
            if isinstance(node.value, dict) and isinstance(step, str):
                inside = node.value.get(step)
            elif isinstance(node.value, list) and isinstance(step, int):
                inside = node.value[step] if step < len(node.value) else None
            if inside is None:
                break
            node = inside
        return node

    def key_position(self, path: Path) -> Position:
        """Where the last key of `path` is written; the mapping's place where it is not."""
        parent = self.at(path[:-1])
        return parent.keys.get(str(path[-1]), parent.position)

    def walk(self, path: Path = ()) -> Iterator[tuple[Path, Node]]:
        """Every node with its path, this one first."""
        yield path, self
        if isinstance(self.value, dict):
            for key, child in self.value.items():
                yield from child.walk((*path, key))
        elif isinstance(self.value, list):
            for index, child in enumerate(self.value):
                yield from child.walk((*path, index))


def place_in(file: str) -> Place:
    """Positions for the text of a file."""
    return lambda mark: Position(file, mark.line + 1, mark.column + 1)


def read_yaml(text: str, place: Place, problems: Problems) -> Node | None:
    """The tree of a YAML text; None where it is empty.

    What stops the reading is raised at once; a repeated key and the like joins `problems`.
    """
    read = _composed(text, place, problems, lambda composer: [composer.get_single_node()])
    return read[0]


def read_documents(text: str, place: Place, problems: Problems) -> list[Node]:
    """The trees of a YAML text of any number of documents, without those that are empty."""

    def each(composer: _Composer) -> Iterator[YamlNode | None]:
        while composer.check_node():
            yield composer.get_node()

    read = _composed(text, place, problems, each)
    return [node for node in read if node is not None and node.value is not None]


def _composed(
    text: str,
    place: Place,
    problems: Problems,
    documents: Callable[[_Composer], Iterable[YamlNode | None]],
) -> list[Node | None]:
    try:
        composed = list(documents(_Composer(text)))
    except _RefusedError as refused:
        problems.add(place(refused.mark), refused.message)
    except MarkedYAMLError as failure:
        mark, message = explain_syntax(failure)
        problems.add(place(mark or _mark(text, 0)), message)
    except ReaderError as failure:
        character = f"U+{ord(text[failure.position]):04X}"
        message = f"the character {character} is not allowed in a plan"
        problems.add(place(_mark(text, failure.position)), message)
    else:
        tree = _Tree(place, problems)
        return [None if each is None else tree.build(each, 0) for each in composed]
    raise problems.error()


def _mark(text: str, index: int) -> Mark:
    line = text.count("\n", 0, index)
    return Mark("", index, line, index - (text.rfind("\n", 0, index) + 1), None, 0)


class _RefusedError(Exception):
    """Valid YAML that no plan may contain."""

    def __init__(self, mark: Any, message: str) -> None:
        super().__init__(message)
        self.mark = mark
        self.message = message


class Resolver(BaseResolver):
    """Which unquoted words are not texts: the core schema of YAML 1.2."""


for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    Resolver.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first
    )


class _Composer(Reader, Scanner, Parser, Composer, Resolver):
    """PyYAML's composer, with the depth and the number of nodes bounded."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        Resolver.__init__(self)
        self._depth = 0
        self._nodes = 0
        self._open: list[str] = []

    def compose_node(self, parent: YamlNode | None, index: int) -> YamlNode | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, AliasEvent):
            if event.anchor in self._open:
                raise _RefusedError(event.start_mark, f"`*{excerpt(event.anchor)}` contains itself")
            return super().compose_node(parent, index)
        if event.tag is not None:
            tag = excerpt(event.tag.replace("tag:yaml.org,2002:", "!!"))
            message = f"the YAML tag `{tag}` is not allowed in a plan"
            raise _RefusedError(event.start_mark, message)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _RefusedError(event.start_mark, _TOO_MANY)
        if self._depth >= MAX_DEPTH:
            raise _RefusedError(event.start_mark, _TOO_DEEP)
        self._depth += 1
        if event.anchor is not None:
            self._open.append(event.anchor)
        node = super().compose_node(parent, index)
        if event.anchor is not None:
            self._open.pop()
        self._depth -= 1
        return node


_TOO_MANY = f"the plan has more than {MAX_NODES} values (aliases count as what they stand for)"
_TOO_DEEP = f"the plan is nested more than {MAX_DEPTH} levels deep"


@dataclass(slots=True)
class _Tree:
    """Builds nodes from PyYAML's, every alias as a copy of its own."""

    place: Place
    problems: Problems
    nodes: int = 0

    def build(self, composed: YamlNode, depth: int) -> Node:
        position = self.place(composed.start_mark)
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            self.problems.add(position, _TOO_DEEP if depth > MAX_DEPTH else _TOO_MANY)
            raise self.problems.error()
        if isinstance(composed, MappingNode):
            return self._mapping(composed, position, depth)
        if isinstance(composed, SequenceNode):
            return Node(position, [self.build(child, depth + 1) for child in composed.value])
        assert isinstance(composed, ScalarNode)
        return Node(position, self._scalar(composed, position), composed.value)

    def _mapping(self, composed: MappingNode, position: Position, depth: int) -> Node:
        mapping: dict[str, Node] = {}
        keys: dict[str, Position] = {}
        for key_node, value_node in composed.value:
            place = self.place(key_node.start_mark)
            value = self.build(value_node, depth + 1)
            key = self._key(key_node, place)
            if key is None:
                continue
            if key in mapping:
                first = f", first in line {keys[key].line}" if keys[key].line else ""
                self.problems.add(place, f"the key `{excerpt(key)}` stands twice{first}")
                continue
            mapping[key], keys[key] = value, place
        return Node(position, mapping, keys=keys)

    def _key(self, node: YamlNode, place: Position) -> str | None:
        """The text of a key; a problem and None where a plan can have no such key."""
        if not isinstance(node, ScalarNode):
            self.problems.add(place, "expected a word as key, found a list or a mapping")
        elif not node.tag.endswith((":str", ":int")):  # layers may be keys
            found = f"`{excerpt(node.value)}`" if node.value else "nothing"
            self.problems.add(place, f"expected a word as key, found {found}")
        elif node.value == "<<":
            self.problems.add(place, "merge keys (<<) are not read in a plan; write the keys out")
        else:
            return str(node.value)
        return None

    def _scalar(self, node: ScalarNode, position: Position) -> Scalar:
        if node.tag.endswith(":int") and len(node.value) > _MAX_DIGITS:
            self.problems.add(position, f"the number has more than {_MAX_DIGITS} digits")
            return 0
        return _converted(node.tag, node.value)


def plain_scalar(text: str) -> Scalar:
    """What `text` means in YAML where it stands without quotes; nothing is a text here."""
    tag = Resolver().resolve(ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    if tag.endswith(":null") or len(text) > _MAX_DIGITS:
        return text
    return _converted(tag, text)


def _converted(tag: str, text: str) -> Scalar:
    match tag.rpartition(":")[2]:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        case "int":
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        case _:
            return text
