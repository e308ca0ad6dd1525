"""What the keys of every part of a plan are made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from mergeengine.values.references import check_printable


class NotExpected(ValueError):
    """``expected ...``: the reader of the error adds what was found, then `hint`."""

    def __init__(self, expected: str, hint: str = "") -> None:
        super().__init__(expected)
        self.hint = hint


class Keys(BaseModel):
    """A mapping of a plan."""

    model_config = ConfigDict(extra="forbid", strict=True)


def checked(check: Any) -> AfterValidator:
    """A text that `check` raises no ValueError for."""

    def validate(text: str) -> str:
        check(text)
        return text

    return AfterValidator(validate)


def one_or_many(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def written_keys(model: type[BaseModel]) -> dict[str, Any]:
    """The keys of a mapping as a plan writes them, and what each may hold."""
    return {info.alias or name: info.annotation for name, info in model.model_fields.items()}


Number = Annotated[float, Field(allow_inf_nan=False)]
LINE = {"type": "string", "pattern": r"^\S(.*\S)?$"}
Line = Annotated[str, checked(check_printable), WithJsonSchema(LINE)]


def one_or_list(one: dict[str, Any]) -> WithJsonSchema:
    """For editors: what `one_or_many` reads."""
    return WithJsonSchema({"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]})
