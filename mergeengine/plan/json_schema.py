"""The JSON Schema of plans, for editors: what validates here is, in form, a plan.

It is made of the same models that check a plan. Where a validator of ours reads several forms
(sizes, layers, dtypes), `schema` says beside it what they are; here come the words that an editor
shows, variables, and which keys need or exclude each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergeengine.lazy.dtypes import OUTPUT_DTYPES
from mergeengine.plan.schema import PlanKeys

FILE = "mergeengine.schema.json"
MODELINE = f"# yaml-language-server: $schema={FILE}"
_TITLE = "mergeengine plan"

# What an editor shows, by the name of the key; of all keys of one name.
_DESCRIPTIONS = {
    "version": "Of the plan language: 1.",
    "name": "Of the plan, or of a source; an output is replaced only by a plan of its name.",
    "include": "A plan file, or several, to lie under this one; relative to this file.",
    "vars": "Values with names, used as ${name}.",
    "base": "Short for `source_base` and `target` of one model.",
    "target": "The model that receives the delta: org/name[@revision], or a path from ./",
    "source_base": "The model that `source_ft` was fine-tuned from.",
    "source_ft": "The fine-tuned model; the delta is source_ft - source_base.",
    "adapter": "A PEFT adapter (LoRA): its folder, or org/name[@revision].",
    "method": "How the sources are merged; `mergeengine methods` lists them.",
    "parameters": "Of the method; those of a source hold for it, those of the plan for all.",
    "model": "A model as a source: it is merged itself, or its difference to the target.",
    "scaling": "How much of the delta is added, or the weight of the source.",
    "masks": "For each tensor, the first entry that matches decides how much of the delta it gets.",
    "seed": "Of random masks, a whole number.",
    "sources": "Several deltas, each with its models, scaling and masks.",
    "layers": "Layers, both ends included: 4, 0-3 or 28-, or a list of these.",
    "match": "Globs on the whole name of a tensor; * crosses dots.",
    "selections": "Choices of tensors with names, for `selection`.",
    "regex": "Regular expressions that are found in a tensor's name.",
    "kind": "Kinds of tensors: attention, mlp, norm, ...; `inspect --kinds` lists them.",
    "selection": "Names of the plan's `selections`.",
    "all": "Selectors that must all hold.",
    "any": "Selectors of which one must hold.",
    "not": "Selectors of which none may hold.",
    "scale": "The factor for these tensors; 0 leaves the target's values as they are.",
    "output": "Where the output goes, and what it is made of besides the merged numbers.",
    "path": "The folder to make; relative to this file.",
    "dtype": "In which element type tensors are written; the target's by default.",
    "shard_size": "Most bytes of tensors in one file: 5GB, 512MiB or 1048576.",
    "tokenizer": "Where the tokenizer comes from: source_ft, target or a model.",
    "config": "Where config.json comes from: target, source_ft or a model.",
    "generation_config": "Where it comes from: source_ft, target or a model.",
    "quantization": "Of weights that the target has in 8 bits: none, or keep to write them so.",
    "chat_template": "auto, a name, or a template of Jinja; that of the tokenizer by default.",
    "numerics": "How is computed.",
    "compute_dtype": "Of the arithmetic; auto: float32, and float64 for float32 outputs. 16 "
    "bits only beside `compatibility`.",
    "rename": "Names that the sources' tensors have in the target.",
    "to": "The name in the target; * or \\1 is what the pattern's own stands for.",
    "in": "Whose tensors: source_base, source_ft, or both.",
    "layer_map": "For layers of the target, the layers of the sources whose delta they get.",
    "on_missing": "A tensor of the target that a source lacks.",
    "on_extra": "A tensor that only the fine-tune has.",
    "on_mismatch": "A tensor of another shape.",
    "vocabulary": "Whose tokens have rows in the output, where vocabularies differ.",
    "compatibility": "Other code whose vocabularies, or roundings, are taken, to compare with it.",
    "on_nonfinite": "Infinities or NaN among the computed values.",
    "on_unmatched": "Rules, masks and others with selectors that match no tensor.",
}
_NAME = "[A-Za-z_][A-Za-z0-9_]*"
_DEFINITIONS = {
    "Substituted": {
        "description": "A text with a variable, ${name} or ${env:NAME}, or with $$.",
        "type": "string",
        "pattern": r"\$[{$]",
    },
}
_SPECIAL: dict[str, dict[str, Any]] = {
    "include": {
        "anyOf": [
            {"type": "string", "minLength": 1},
            {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        ]
    },
    "vars": {
        "type": "object",
        "propertyNames": {"pattern": f"^{_NAME}$"},
        "additionalProperties": {"not": {"type": "null"}},
    },
}
_KEPT = ("type", "additionalProperties", "required")
# What a plan needs by itself; with `include` another file may have it.
_NEEDED = {
    "required": ["version"],
    "allOf": [
        {"anyOf": [{"required": [key]} for key in ("target", "base", "method")]},
        {"anyOf": [{"required": ["source_ft"]}, {"required": ["sources"]}]},
        {"anyOf": [{"required": [key]} for key in ("source_base", "base", "sources")]},
    ],
}
_MODEL_OR_DELTA: dict[str, Any] = {
    "oneOf": [{"required": ["model"]}, {"required": ["source_ft"]}],
    "not": {"required": ["model", "source_base"]},
}
_EXCLUDED = [
    {"not": {"required": pair}}
    for pair in (
        ["base", "target"],
        ["base", "source_base"],
        ["sources", "source_ft"],
        ["sources", "scaling"],
        ["vocabulary", "compatibility"],
    )
]
_KEPT_WITH_DTYPE = {
    "required": ["quantization", "dtype"],
    "properties": {"quantization": {"const": "keep"}},
}

_NARROW_ALONE = {
    "required": ["compute_dtype"],
    "properties": {"compute_dtype": {"enum": ["bfloat16", "float16"]}},
    "not": {"required": ["compatibility"]},
}


def plan_schema() -> dict[str, Any]:
    """The schema of a plan file as plain data, of draft 2020-12."""
    made = PlanKeys.model_json_schema()
    definitions = {name: mapping(model) for name, model in made.pop("$defs", {}).items()}
    root = mapping(made)
    root.pop("required", None)
    root["properties"].update(
        {key: {**root["properties"][key], **form} for key, form in _SPECIAL.items()}
    )
    definitions["RenameKeys"]["oneOf"] = [{"required": ["match"]}, {"required": ["regex"]}]
    definitions["SourceKeys"] |= _MODEL_OR_DELTA
    # One dtype is short for a list of one rule.
    dtypes = definitions["OutputKeys"]["properties"]["dtype"]
    dtypes["anyOf"].insert(0, {"enum": list(OUTPUT_DTYPES)})
    definitions["OutputKeys"]["not"] = _KEPT_WITH_DTYPE
    definitions["NumericsKeys"]["not"] = _NARROW_ALONE
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **root,
        "title": _TITLE,
        "allOf": _EXCLUDED,
        "if": {"required": ["include"]},
        "else": _NEEDED,
        "$defs": {**_DEFINITIONS, **dict(sorted(definitions.items()))},
    }


def mapping(
    model: dict[str, Any], descriptions: Mapping[str, str] = _DESCRIPTIONS
) -> dict[str, Any]:
    """A model's schema with what its keys mean, and variables wherever values may stand."""
    properties = {
        key: _value(form, key, descriptions) for key, form in model.get("properties", {}).items()
    }
    kept: dict[str, Any] = {key: model[key] for key in _KEPT if key in model}
    return {**kept, "properties": properties} if properties else _inside(model)


def _value(form: dict[str, Any], key: str, descriptions: Mapping[str, str]) -> dict[str, Any]:
    described = {"description": descriptions[key]} if key in descriptions else {}
    default = {"default": form["default"]} if form.get("default") is not None else {}
    if isinstance(form.get("default"), dict | list):
        default = {}
    return {**described, **_or_substituted(_bare(form)), **default}


def _bare(form: dict[str, Any]) -> dict[str, Any]:
    """Without pydantic's titles and defaults, and without null, which no key of a plan may be."""
    kept = {key: value for key, value in form.items() if key not in ("title", "default")}
    if "anyOf" in kept:
        others = [each for each in kept["anyOf"] if each != {"type": "null"}]
        if len(others) == 1:
            del kept["anyOf"]
            return {**_bare(others[0]), **kept}
        kept["anyOf"] = [_bare(each) for each in others]
    return kept


def _inside(form: dict[str, Any]) -> dict[str, Any]:
    """The same, where the entries of a list may be variables."""
    form = _bare(form)
    if isinstance(form.get("items"), dict):
        form["items"] = _or_substituted(form["items"])
    if "anyOf" in form:
        form["anyOf"] = [_inside(each) for each in form["anyOf"]]
    return form


def _or_substituted(form: dict[str, Any]) -> dict[str, Any]:
    form = _inside(form)
    if not form or form == {"type": "string"}:
        return form
    both = form.pop("anyOf") if set(form) == {"anyOf"} else [form]
    return {"anyOf": [*both, {"$ref": "#/$defs/Substituted"}]}
