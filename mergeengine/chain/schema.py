"""The keys of a chain and what each may hold."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema

from mergeengine.chain.templates import INPUT, WORD, WORDS
from mergeengine.plan.forms import LINE, Keys, Line, NotExpected, checked
from mergeengine.plan.schema import OutputKeys, Reference, version_one
from mergeengine.values.references import check_path

# Words that mean something else where an id or a model's name may stand.
RESERVED = (*WORDS, INPUT, "target", "source_base", "source_ft", "base")
_MOST_CHARACTERS = 64


def _name(text: str) -> str:
    if not re.fullmatch(WORD, text) or len(text) > _MOST_CHARACTERS:
        raise NotExpected("expected a name of letters, digits, _ and - that begins with a letter")
    if text in RESERVED:
        raise ValueError(f"`{text}` has a meaning of its own; choose another name")
    return text


def _argument(value: Any) -> Any:
    """Numbers may stand in a command as they are written."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    return value


def _argument_text(text: str) -> str:
    if "\0" in text:
        raise ValueError("a command cannot contain a zero byte")
    return text


def _file(text: str) -> str:
    check_path(text)
    return text


def _about(value: Any) -> Any:
    return {"about": value} if isinstance(value, str) else value


def _variable(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise NotExpected("expected the name of a variable of the environment")
    return text


Name = Annotated[
    str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{WORD}$"})
]
Argument = Annotated[
    str,
    BeforeValidator(_argument),
    AfterValidator(_argument_text),
    WithJsonSchema({"type": ["string", "number"]}),
]
File = Annotated[str, AfterValidator(_file), WithJsonSchema(LINE)]
Variable = Annotated[str, AfterValidator(_variable)]


class RunKeys(Keys):
    command: Annotated[list[Argument], Field(min_length=1)]
    files: list[File] = Field([])
    env: dict[Variable, Argument] = Field({})
    pass_env: list[Variable] = Field([])


class ExternalKeys(Keys):
    about: Line
    uses: list[Name] = Field([])


class EvaluateKeys(Keys):
    model: Reference
    tasks: Annotated[list[Line], Field(min_length=1)]
    task_folder: File | None = None
    arguments: list[Argument] = Field([])


def _versions(names: list[str]) -> list[str]:
    if len(names) < 2:
        raise ValueError("expected two models or more, from the oldest version on")
    return names


Versions = Annotated[
    list[Name],
    AfterValidator(_versions),
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 2}),
]


class IterativeKeys(Keys):
    bases: Versions
    finetune: RunKeys
    plan: Any = None
    prefix: Name | None = None
    keep_starts: bool = True


class MatrixKeys(Keys):
    versions: Versions
    finetuned: Annotated[list[Name], Field(min_length=1)]
    plan: Any = None
    prefix: Name | None = None


class StepKeys(Keys):
    id: Name | None = None
    plan: Any = None  # a path, or a plan, which is checked by itself
    run: RunKeys | None = None
    external: Annotated[ExternalKeys, BeforeValidator(_about)] | None = None
    evaluate: EvaluateKeys | None = None
    iterative: IterativeKeys | None = None
    direct: IterativeKeys | None = None
    matrix: MatrixKeys | None = None
    foreach: Any = None  # both are gone before these models see a chain: `expand`
    steps: Any = None
    output: OutputKeys | None = None
    keep: bool = True


class ChainKeys(Keys):
    version: Annotated[int, PlainValidator(version_one), WithJsonSchema({"const": 1})]
    name: Line | None = None
    vars: Any = None
    output_root: Annotated[str, checked(check_path), WithJsonSchema(LINE)] = "out"
    models: dict[Name, Reference] = Field({})
    results: Annotated[list[Name], Field(min_length=1)] | None = None
    steps: Annotated[list[StepKeys], Field(min_length=1)]
