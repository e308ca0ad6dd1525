"""A plan's tree as YAML, as a person would write it."""

from __future__ import annotations

import io
import re

from yaml.emitter import Emitter
from yaml.nodes import MappingNode, ScalarNode, SequenceNode
from yaml.nodes import Node as YamlNode
from yaml.serializer import Serializer

from mergeengine.plan.document import Node, Resolver

_WIDTH = 100
_QUOTED = re.compile(r"\*|[0-9]+-[0-9]*$")
_INDENT = 2


class _Dumper(Emitter, Serializer, Resolver):
    """Quotes what the language of plans would take for something else than a text."""

    def __init__(self, stream: io.StringIO) -> None:
        Emitter.__init__(self, stream, indent=_INDENT, width=10 * _WIDTH, allow_unicode=True)
        Serializer.__init__(self)
        Resolver.__init__(self)

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Entries of lists stand further in than the key of the list."""
        super().increase_indent(flow, False)


def yaml_text(root: Node) -> str:
    """Mappings and lists on one line where they fit one."""
    stream = io.StringIO()
    dumper = _Dumper(stream)
    dumper.open()
    dumper.serialize(_composed(root, 0, top=True))
    dumper.close()
    return stream.getvalue()


def _composed(node: Node, indent: int, top: bool = False) -> YamlNode:
    inner = indent + _INDENT
    match node.value:
        case dict():
            pairs = [
                (_scalar(key), _composed(child, inner + len(key)))
                for key, child in node.value.items()
            ]
            return MappingNode(
                "tag:yaml.org,2002:map", pairs, flow_style=not top and _fits(node, indent)
            )
        case list():
            entries = [_composed(child, inner) for child in node.value]
            return SequenceNode("tag:yaml.org,2002:seq", entries, flow_style=_fits(node, indent))
        case str():
            return _scalar(node.value)
        case None | bool():
            text = "null" if node.value is None else str(node.value).lower()
            kind = "null" if node.value is None else "bool"
        case _:
            text, kind = node.written, "int" if isinstance(node.value, int) else "float"
    return ScalarNode(f"tag:yaml.org,2002:{kind}", text)


def _scalar(text: str) -> ScalarNode:
    """A text; on several lines where it has them, globs and layers in quotes as in all plans."""
    style = "|" if "\n" in text else '"' if _QUOTED.match(text) else None
    if text.isdecimal():
        return ScalarNode("tag:yaml.org,2002:int", text)
    return ScalarNode("tag:yaml.org,2002:str", text, style=style)


def _fits(node: Node, indent: int) -> bool:
    """Whether a value is short enough for one line, and has no texts of several lines."""
    return indent + _length(node) <= _WIDTH and all(
        "\n" not in str(each.value) for _, each in node.walk() if isinstance(each.value, str)
    )


def _length(node: Node) -> int:
    match node.value:
        case dict():
            return sum(len(key) + 4 + _length(child) for key, child in node.value.items())
        case list():
            return sum(2 + _length(child) for child in node.value)
        case _:
            return len(node.written or str(node.value)) + 2 * isinstance(node.value, str)
