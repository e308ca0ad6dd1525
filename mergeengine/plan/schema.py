"""The keys of a plan and what each may hold.

These models check form only; which keys go together is checked in `load`, and what references
and numbers become is in `build`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    WithJsonSchema,
)

from mergeengine.lazy.dtypes import OUTPUT_DTYPES, DType
from mergeengine.plan.forms import (
    LINE,
    Keys,
    Line,
    NotExpected,
    Number,
    checked,
    one_or_list,
    one_or_many,
)
from mergeengine.plan.parameters import Option, Scaled, Varying
from mergeengine.plan.plan import (
    DEFAULT_METHOD,
    Compatibility,
    ComputeDtype,
    OnExtra,
    OnMismatch,
    OnMissing,
    OnNonfinite,
    OnUnmatched,
    Quantization,
    Rounding,
)
from mergeengine.plan.selecting import LAYERS, Layers, SelectorKeys
from mergeengine.plan.vocabularies import VocabularyForm
from mergeengine.units import parse_size
from mergeengine.values.actions import RowRange, Token
from mergeengine.values.chat_templates import check_chat_template
from mergeengine.values.nearest import did_you_mean, nearest
from mergeengine.values.references import REFERENCE, check_path, check_reference
from mergeengine.values.renaming import LayerMap

# Names of other tools for the same types.
_DTYPE_SYNONYMS = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
    "fp64": "float64",
    "double": "float64",
}


def version_one(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 1:
        raise ValueError(f"this mergeengine reads plans of version 1, not {value}")
    if value != 1 or not isinstance(value, int) or isinstance(value, bool):
        raise NotExpected("expected 1")
    return 1


def _size(value: Any) -> int:
    try:
        return parse_size(value if isinstance(value, int) else str(value))
    except (ValueError, OverflowError):
        raise NotExpected("expected a size such as 5GB, 512MiB or 1048576") from None


def _rows(value: Any) -> RowRange:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise NotExpected("expected rows such as 4, 0-31999 or 32000-")
    return RowRange.parse(value)


def _token(value: Any) -> RowRange | Token:
    """Numbers and ranges are ids; ``{token: "42"}`` is the token that looks like one."""
    if isinstance(value, dict) and list(value) == ["token"] and isinstance(value["token"], str):
        value = value["token"]
    elif isinstance(value, int | str) and not isinstance(value, bool) and RowRange.fits(str(value)):
        return RowRange.parse(value)
    if not isinstance(value, str):
        value = ""
    if not value:
        raise NotExpected('expected a token, its id, a range of ids, or {token: "42"}')
    return Token(value)


def _share(value: float) -> float:
    if not 0 < value <= 1:
        raise NotExpected("expected a share above 0 and not above 1")
    return value


def _probability(value: float) -> float:
    if not 0 <= value < 1:
        raise NotExpected("expected a probability of 0 or more and below 1")
    return value


def _magnitude(value: float) -> float:
    if value < 0:
        raise NotExpected("expected a magnitude, which is not negative")
    return value


def _sign(text: str) -> str:
    word, _, name = text.partition(" ")
    if text != "target_shift" and (word != "agree_with" or not name.strip()):
        raise NotExpected("expected target_shift or agree_with and the name of a source")
    return text


def _dtype(value: Any) -> DType:
    if isinstance(value, str):
        if value in OUTPUT_DTYPES:
            return OUTPUT_DTYPES[value]
        known = _DTYPE_SYNONYMS.get(value.lower())
        hint = f"; did you mean `{known}`?" if known else did_you_mean(value, OUTPUT_DTYPES)
    else:
        hint = ""
    raise NotExpected(f"expected one of {', '.join(OUTPUT_DTYPES)}", hint)


def _dtype_rules(value: Any) -> Any:
    return value if isinstance(value, list) else [{"dtype": value}]


def _files_of(text: str) -> str:
    if text in ("target", "source_ft"):
        return text
    meant = nearest(text, ("target", "source_ft"), cutoff=0.7)
    if meant and "/" not in text:
        raise ValueError(f"expected target, source_ft or a model; did you mean `{meant[0]}`?")
    check_reference(text)
    return text


_SIZE = r"^\s*[0-9]+(\.[0-9]+)?\s*(([KMGTPkmgtp][Ii]?)?[Bb])?\s*$"
_DTYPE = {"enum": list(OUTPUT_DTYPES)}

Reference = Annotated[
    str, checked(check_reference), WithJsonSchema({"type": "string", "pattern": REFERENCE})
]
FilesOf = Annotated[
    str,
    AfterValidator(_files_of),
    WithJsonSchema(
        {"anyOf": [{"enum": ["target", "source_ft"]}, {"type": "string", "pattern": REFERENCE}]}
    ),
]
OutputPath = Annotated[str, checked(check_path), WithJsonSchema(LINE)]
Size = Annotated[
    int,
    PlainValidator(_size),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": _SIZE}]}
    ),
]


Rows = Annotated[
    list[Annotated[RowRange, PlainValidator(_rows)]],
    BeforeValidator(one_or_many),
    Field(min_length=1),
    one_or_list({"anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^\\s*[0-9]"}]}),
]
Tokens = Annotated[
    list[Annotated[RowRange | Token, PlainValidator(_token)]],
    BeforeValidator(one_or_many),
    Field(min_length=1),
    one_or_list(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "minLength": 1},
                {
                    "type": "object",
                    "properties": {"token": {"type": "string", "minLength": 1}},
                    "required": ["token"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
Share = Annotated[Number, AfterValidator(_share)]


def _mask_file(text: str) -> str:
    (check_reference if "://" in text else check_path)(text)
    if not text.partition("?")[0].endswith(".safetensors"):
        raise NotExpected("expected a .safetensors file")
    return text


class MaskKeys(SelectorKeys):
    scale: Varying | None = None
    keep: Literal["target", "source_ft"] | None = None
    of: Line | None = None
    orthogonal_to: Literal["target_shift"] | None = None
    beta: Number | None = None
    rows: Rows | None = None
    tokens: Tokens | None = None
    file: Annotated[str, AfterValidator(_mask_file)] | None = None
    default: Number | None = None
    above: Annotated[Number, AfterValidator(_magnitude)] | None = None
    top: Share | None = None
    bottom: Share | None = None
    sign: Annotated[Line, AfterValidator(_sign)] | None = None
    drop: Annotated[Number, AfterValidator(_probability)] | None = None


class DtypeRuleKeys(SelectorKeys):
    dtype: Annotated[DType, PlainValidator(_dtype), WithJsonSchema(_DTYPE)]


def _layer_map(value: Any) -> LayerMap:
    if not isinstance(value, dict) or not value:
        raise NotExpected('expected layers of the target and of the sources, {"0-15": "0-15"}')
    for layers in (*value, *value.values()):
        if isinstance(layers, bool) or not isinstance(layers, int | str):
            raise NotExpected('expected layers of the target and of the sources, {"0-15": "0-15"}')
    return LayerMap.parse({str(target): str(source) for target, source in value.items()})


Sides = Annotated[
    list[Literal["source_base", "source_ft"]],
    BeforeValidator(one_or_many),
    Field(min_length=1),
    one_or_list({"enum": ["source_base", "source_ft"]}),
]


class RenameKeys(Keys):
    match: Line | None = None
    regex: Line | None = None
    to: str
    of: Sides | None = Field(None, alias="in")


_LAYERS_OF_A_MAP = {"type": ["string", "integer"], "pattern": r"^\s*[0-9]+(\s*-\s*[0-9]+)?\s*$"}
LayerMapping = Annotated[
    LayerMap,
    PlainValidator(_layer_map),
    WithJsonSchema(
        {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": _LAYERS_OF_A_MAP["pattern"]},
            "additionalProperties": _LAYERS_OF_A_MAP,
        }
    ),
]


class AdapterKeys(Keys):
    adapter: Reference
    base: Reference | None = None


class SlabKeys(Keys):
    model: PartOfStack
    layers: Layers | None = None


class StackKeys(Keys):
    stack: Annotated[list[SlabKeys], Field(min_length=1)]


def _fine_tune(value: Any) -> Any:
    """A model, an adapter and the model that it changes, or layers of models."""
    if isinstance(value, dict) and "stack" in value:
        return StackKeys.model_validate(value)
    if isinstance(value, dict):
        return AdapterKeys.model_validate(value)
    if not isinstance(value, str):
        raise NotExpected("expected a model, {adapter: ..., base: ...} or {stack: [...]}")
    check_reference(value)
    return value


def _model(value: Any) -> Any:
    """The same where nothing else says what the base of an adapter is."""
    found = _fine_tune(value)
    if isinstance(found, AdapterKeys) and found.base is None:
        raise ValueError("`base` is missing beside `adapter`: the model that the adapter changes")
    return found


def _part_of_stack(value: Any) -> Any:
    if isinstance(value, dict) and "stack" in value:
        raise ValueError("a stack has no stacks inside: write the layers of all in one list")
    return _model(value)


_MODEL = {"type": "string", "pattern": REFERENCE}
_PART = {"anyOf": [_MODEL, {"type": "string", "pattern": r"\$[{$]"}]}  # also a variable
_ADAPTER: dict[str, Any] = {
    "type": "object",
    "properties": {"adapter": _PART, "base": _PART},
    "required": ["adapter", "base"],
    "additionalProperties": False,
}
_SLAB = {
    "type": "object",
    "properties": {"model": {"anyOf": [*_PART["anyOf"], _ADAPTER]}, "layers": LAYERS},
    "required": ["model"],
    "additionalProperties": False,
}
_STACK = {
    "type": "object",
    "properties": {"stack": {"type": "array", "items": _SLAB, "minItems": 1}},
    "required": ["stack"],
    "additionalProperties": False,
}
FineTune = Annotated[
    str | AdapterKeys | StackKeys,
    PlainValidator(_fine_tune),
    WithJsonSchema({"anyOf": [_MODEL, {**_ADAPTER, "required": ["adapter"]}, _STACK]}),
]
Model = Annotated[
    str | AdapterKeys | StackKeys,
    PlainValidator(_model),
    WithJsonSchema({"anyOf": [_MODEL, _ADAPTER, _STACK]}),
]
PartOfStack = Annotated[
    str | AdapterKeys,
    PlainValidator(_part_of_stack),
    WithJsonSchema({"anyOf": [_MODEL, _ADAPTER]}),
]
SlabKeys.model_rebuild()
StackKeys.model_rebuild()


class SourceKeys(Keys):
    name: Line | None = None
    model: Model | None = None
    source_base: Model | None = None
    source_ft: FineTune | None = None
    scaling: Scaled = 1.0
    parameters: dict[Line, Option] = Field({})
    masks: list[MaskKeys] = Field([])
    rename: list[RenameKeys] | None = None
    layer_map: LayerMapping | None = None


class OutputKeys(Keys):
    path: OutputPath | None = None
    dtype: (
        Annotated[list[DtypeRuleKeys], BeforeValidator(_dtype_rules), Field(min_length=1)] | None
    ) = None
    shard_size: Size | None = None
    tokenizer: FilesOf = "source_ft"
    config: FilesOf = "target"
    generation_config: FilesOf = "source_ft"
    quantization: Quantization = "none"
    chat_template: Annotated[str, checked(check_chat_template)] | None = None


class NumericsKeys(Keys):
    compute_dtype: ComputeDtype = "auto"
    compatibility: Rounding | None = None


class PlanKeys(Keys):
    version: Annotated[int, PlainValidator(version_one), WithJsonSchema({"const": 1})]
    name: Line | None = None
    method: Line = DEFAULT_METHOD
    parameters: dict[Line, Option] = Field({})
    include: Any = None  # both are gone before these models see a plan: `include`, `variables`
    vars: Any = None
    base: Model | None = None
    target: Model | None = None
    source_base: Model | None = None
    source_ft: FineTune | None = None
    scaling: Scaled = 1.0
    selections: dict[str, SelectorKeys] = Field({})
    masks: list[MaskKeys] = Field([])
    seed: int = 0
    rename: list[RenameKeys] = Field([])
    layer_map: LayerMapping | None = None
    sources: Annotated[list[SourceKeys], Field(min_length=1)] | None = None
    output: OutputKeys = OutputKeys()
    numerics: NumericsKeys = NumericsKeys()
    on_missing: OnMissing = "error"
    on_extra: OnExtra = "error"
    on_mismatch: OnMismatch = "error"
    on_nonfinite: OnNonfinite = "error"
    on_unmatched: OnUnmatched = "error"
    vocabulary: VocabularyForm = "align"
    compatibility: Compatibility | None = None
