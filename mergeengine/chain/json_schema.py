"""The JSON Schema of chains, for editors. Plans inside it are as `plan.json_schema` has them."""

from __future__ import annotations

from typing import Any

from mergeengine.chain.schema import ChainKeys
from mergeengine.plan.json_schema import mapping, plan_schema

FILE = "mergeengine-chain.schema.json"
MODELINE = f"# yaml-language-server: $schema={FILE}"
_DESCRIPTIONS = {
    "version": "Of the chain language: 1.",
    "name": "Of the chain.",
    "vars": "Values with names, used as ${name} anywhere in this file.",
    "output_root": "Where outputs go that no step puts elsewhere, and logs; relative to this file.",
    "models": "Short names of models: org/name[@revision], or a path from ./",
    "results": "The steps that are wanted; one that none of them needs is an error.",
    "steps": "What is done. Steps name each other by id, in any order.",
    "id": "The name of the step, by which others take its output.",
    "plan": "A plan, or the path of one; in a scheme, further keys of each of its plans.",
    "run": "A program that makes a model; run with --allow-commands only.",
    "external": "Something that is done elsewhere: the chain waits for it.",
    "evaluate": "A model measured by lm-evaluation-harness.",
    "iterative": "Algorithm 1: each version gets the delta of the fine-tune before it.",
    "direct": "Each version gets the delta of a plain fine-tune of the version before it.",
    "matrix": "Every fine-tune's delta on every other version.",
    "foreach": "Names with lists of values: `steps` are done for each combination.",
    "output": "Where the output goes; of a plan, all that a plan says of its output.",
    "keep": "false: removed when no step needs it; a merge that merges take is never written.",
    "command": "The program and its arguments: {id} is a step's output, {output} where to write.",
    "files": "Files and folders that the program reads: the step runs again when they change.",
    "env": "Variables of the environment that the program gets.",
    "pass_env": "Names of variables that it gets as they are, such as HF_TOKEN.",
    "about": "What is to be done, for the person who does it.",
    "uses": "The steps whose outputs it takes.",
    "model": "What is measured: a step, one of `models`, or a model.",
    "tasks": "Names of tasks.",
    "task_folder": "The folder of the files of tasks.",
    "arguments": "Further arguments of the harness.",
    "bases": "The versions, from the oldest on: names of steps or models.",
    "finetune": "As `run`, with {input} for the model that is fine-tuned.",
    "prefix": "Before the id of each step of the scheme.",
    "keep_starts": "false: what the fine-tunes begin from is not kept.",
    "versions": "The versions: names of steps or models.",
    "finetuned": "The fine-tune of each of them.",
}
_VARIABLE = "[A-Za-z_][A-Za-z0-9_]*"
_KINDS = ("plan", "run", "external", "evaluate")
_SCHEMES = ("iterative", "direct", "matrix", "foreach")


def chain_schema() -> dict[str, Any]:
    """The schema of a chain file as plain data, of draft 2020-12."""
    made = ChainKeys.model_json_schema()
    definitions = {
        name: mapping(model, _DESCRIPTIONS) for name, model in made.pop("$defs", {}).items()
    }
    plan = plan_schema()
    inside = plan.pop("$defs")
    plan = {key: plan[key] for key in ("type", "additionalProperties", "properties", "allOf")}
    further = {key: plan[key] for key in ("type", "additionalProperties", "properties")}
    definitions |= inside | {"Plan": plan, "FurtherKeys": further}
    step = definitions["StepKeys"]
    properties = step["properties"]
    properties["plan"] |= {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Plan"}]}
    properties["foreach"] |= {"type": ["object", "string"], "minProperties": 1}
    properties["steps"] |= {"type": "array", "items": {"$ref": "#/$defs/StepKeys"}, "minItems": 1}
    external = properties["external"]
    external["anyOf"] = [{"type": "string"}, {"$ref": "#/$defs/ExternalKeys"}]
    external.pop("$ref", None)
    step["oneOf"] = [
        *({"required": ["id", kind]} for kind in _KINDS),
        *({"required": [scheme]} for scheme in _SCHEMES),
    ]
    for name in ("IterativeKeys", "MatrixKeys"):
        definitions[name]["properties"]["plan"] |= {"$ref": "#/$defs/FurtherKeys"}
    root = mapping(made, _DESCRIPTIONS)
    root["properties"]["vars"] |= {
        "type": "object",
        "propertyNames": {"pattern": f"^{_VARIABLE}$"},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **root,
        "title": "mergeengine chain",
        "$defs": dict(sorted(definitions.items())),
    }
