"""The key `vocabulary`: its forms, what goes together with it, and what it becomes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema

from mergeengine.plan.document import Node
from mergeengine.plan.forms import LINE, Keys, Line, NotExpected
from mergeengine.plan.problems import Problems
from mergeengine.values.excerpts import excerpt
from mergeengine.values.nearest import did_you_mean
from mergeengine.values.positions import Position
from mergeengine.values.vocabulary import Origin, RowsOf, TokenOrigin, Vocabulary

ZEROS = "zeros"
ROLES = ("target", "source_ft")
_WORDS = get_args(RowsOf)


def _at_least(least: int) -> AfterValidator:
    def validate(value: int) -> int:
        if value < least:
            raise NotExpected(f"expected a whole number of {least} or more")
        return value

    return AfterValidator(validate)


_Token = Annotated[str, Field(min_length=1)]


class OriginKeys(Keys):
    of: Line
    token: _Token | None = None
    row: Annotated[int, _at_least(0)] | None = None


def _origin(value: Any) -> Any:
    if isinstance(value, dict):
        return OriginKeys.model_validate(value)
    if not isinstance(value, str) or not value:
        raise NotExpected(
            "expected zeros, target, source_ft, the name of a source, or {of: ..., token: ...}"
        )
    return value


_NUMBER = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string", "minLength": 1}
_VARIABLE = {"type": "string", "pattern": r"\$[{$]"}
_ORIGIN: dict[str, Any] = {
    "anyOf": [
        LINE,
        {
            "type": "object",
            "properties": {"of": LINE, "token": _TEXT, "row": {"anyOf": [_NUMBER, _VARIABLE]}},
            "required": ["of"],
            "oneOf": [{"required": ["token"]}, {"required": ["row"]}],
            "additionalProperties": False,
        },
    ]
}


class TokenKeys(Keys):
    token: _Token
    origin: Annotated[str | OriginKeys, PlainValidator(_origin)] = Field(alias="from")
    force: bool = False


class VocabularyKeys(Keys):
    rows: Literal["union", "tokenizer"]
    tokens: list[TokenKeys] = Field([])
    pad_to_multiple_of: Annotated[int, _at_least(1)] = 1


def _vocabulary(value: Any) -> Any:
    if isinstance(value, dict):
        return VocabularyKeys.model_validate(value)
    if value not in _WORDS:
        hint = did_you_mean(value, _WORDS) if isinstance(value, str) else ""
        listed = ", ".join(_WORDS)
        raise NotExpected(f"expected one of {listed}, or {{rows: union, tokens: ...}}", hint)
    return value


def _or_variable(form: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [form, _VARIABLE]}


VocabularyForm = Annotated[
    str | VocabularyKeys,
    PlainValidator(_vocabulary),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": list(_WORDS)},
                {
                    "type": "object",
                    "properties": {
                        "rows": _or_variable({"enum": ["union", "tokenizer"]}),
                        "pad_to_multiple_of": _or_variable({"type": "integer", "minimum": 1}),
                        "tokens": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "properties": {
                                    "token": _TEXT,
                                    "from": _ORIGIN,
                                    "force": _or_variable({"type": "boolean"}),
                                },
                                "required": ["token", "from"],
                                "additionalProperties": False,
                            },
                        },
                    },
                    "required": ["rows"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]


def vocabulary_of(keys: str | VocabularyKeys, root: Node) -> Vocabulary:
    """What the key says; `root` tells where each token is written."""
    if isinstance(keys, str):
        return Vocabulary(next(word for word in get_args(RowsOf) if word == keys))
    tokens = (
        TokenOrigin(
            entry.token,
            _origin_of(entry),
            entry.force,
            root.at(("vocabulary", "tokens", number)).position,
        )
        for number, entry in enumerate(keys.tokens)
    )
    return Vocabulary(keys.rows, tuple(tokens), keys.pad_to_multiple_of)


def _origin_of(entry: TokenKeys) -> Origin:
    """A name alone: its row of the same token."""
    if isinstance(entry.origin, OriginKeys):
        return Origin(entry.origin.of, entry.origin.token, entry.origin.row)
    return Origin(None) if entry.origin == ZEROS else Origin(entry.origin, entry.token)


def check_vocabulary(root: Node, problems: Problems) -> None:
    """Which keys of a plan `vocabulary` excludes, and what is wrong with its tokens."""
    vocabulary, compatibility = root.get("vocabulary"), root.get("compatibility")
    needed: dict[str, tuple[str, str]] = {}
    if vocabulary is not None and compatibility is not None:
        here, there = root.keys["vocabulary"], root.keys["compatibility"]
        where = f"line {there.line}" if there.line and there.file == here.file else str(there)
        text = f"`vocabulary` cannot stand beside `compatibility` ({where}), which decides it"
        problems.add(here, text)
    elif compatibility is not None:
        text = f"compatibility: {excerpt(str(compatibility.value))}"
        needed = dict.fromkeys(("tokenizer", "config"), ("source_ft", text))
    elif vocabulary is not None and vocabulary.value in ROLES:
        needed = {"tokenizer": (vocabulary.value, f"vocabulary: {vocabulary.value}")}
    output = root.get("output")
    for key, (role, text) in needed.items():
        written = output.get(key) if output is not None else None
        if written is not None and written.value != role:
            problems.add(
                written.position, f"`output.{key}` must be {role} beside `{text}`, or be left out"
            )
    for position, message in _token_problems(root):
        problems.add(position, message)


def _token_problems(root: Node) -> Iterator[tuple[Position, str]]:
    """One token twice, names that no source has, and rows that are given twice or not at all."""
    names = [*ROLES, *_source_names(root)]
    seen: set[str] = set()
    for entry in _entries(root.at(("vocabulary",)).get("tokens")):
        token, origin = entry.get("token"), entry.get("from")
        if token is not None and isinstance(token.value, str):
            if token.value in seen:
                yield token.position, f"the token `{excerpt(token.value)}` stands here twice"
            seen.add(token.value)
        of = None if origin is None else origin.get("of") if origin.keys else origin
        if origin is not None and origin.keys:
            given = [key for key in ("token", "row") if origin.get(key) is not None]
            if len(given) != 1:
                found = "both" if given else "neither"
                yield origin.position, f"a row is that of a `token` or a `row`, found {found}"
        if of is None or not isinstance(of.value, str) or of.value in names:
            continue
        if of.value != ZEROS or of is not origin:
            hint = did_you_mean(of.value, names) or f"; there are {', '.join(map(excerpt, names))}"
            yield of.position, f"no source is named `{excerpt(of.value)}`{hint}"


def _source_names(root: Node) -> Iterator[str]:
    sources = root.get("sources")
    for number, source in enumerate(_entries(sources) if sources is not None else ()):
        name = source.get("name")
        yield (
            name.value
            if name is not None and isinstance(name.value, str)
            else (f"source{number + 1}")
        )
    if sources is None:
        yield "source1"


def _entries(node: Node | None) -> list[Node]:
    return node.value if node is not None and isinstance(node.value, list) else []
