"""Checking a plan's tree: every problem in plain sentences, at the place where it is written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mergeengine.plan.document import Node, Path
from mergeengine.plan.forms import Keys, NotExpected, written_keys
from mergeengine.plan.mask_actions import check_masks
from mergeengine.plan.parameters import form_of
from mergeengine.plan.problems import Problems
from mergeengine.plan.renaming import check_renames
from mergeengine.plan.schema import NumericsKeys, OutputKeys, PlanKeys, SourceKeys
from mergeengine.plan.selecting import SELECTING, check_selections
from mergeengine.plan.vocabularies import check_vocabulary
from mergeengine.values.excerpts import excerpt
from mergeengine.values.nearest import did_you_mean, nearest
from mergeengine.values.positions import Position

KeysT = TypeVar("KeysT", bound=Keys)

# The keys of one flat source; with `sources` they stand inside its entries.
_SOURCE_ONLY = ("source_ft", "scaling")


def validate(root: Node, problems: Problems) -> PlanKeys | None:
    """The plan's keys with their values; None, and all problems told, where any is wrong."""
    keys = check_form(root, PlanKeys, problems)
    _check_together(root, problems)
    return None if problems.found else keys


def check_form(root: Node, form: type[KeysT], problems: Problems) -> KeysT | None:
    """The keys of a mapping of ``form``; None where any is wrong, which joins `problems`."""
    empty = [path for path, node in root.walk() if node.value is None]
    for path in empty:
        problems.add(root.at(path).position, f"{_label(path)} has no value")
    try:
        return form.model_validate(root.plain)
    except ValidationError as failure:
        for kind, path, context in _flat(failure):
            told_already = any(path[: len(known)] == known for known in empty) or (
                kind == "missing" and _is_misspelt(root, path, form)
            )
            if not told_already:
                problems.add(*_told(root, kind, path, context, form))
    return None


def _flat(
    failure: ValidationError, before: Path = ()
) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Kind, path and context of each error, those of forms that are checked by themselves too."""
    for error in failure.errors(include_url=False, include_input=False):
        context, path = error.get("ctx", {}), (*before, *error["loc"])
        inner = context.get("error")
        if isinstance(inner, ValidationError):
            yield from _flat(inner, path)
        else:
            yield error["type"], path, context


def _check_together(root: Node, problems: Problems) -> None:
    """Which keys need or exclude each other."""

    def refuse(key: str, message: str) -> None:
        problems.add(root.key_position((key,)), message)

    has_base = root.get("base") is not None
    sources = root.get("sources")
    for key in ("target", "source_base"):
        if has_base and root.get(key) is not None:
            where = _elsewhere(root.keys["base"], root.keys[key])
            refuse(key, f"`{key}` cannot stand beside `base` ({where}), which gives it already")
    needed = [] if has_base or _gives_target(root) else ["target"]
    if sources is None and not _is_misspelt(root, ("sources",)):
        needed += ["source_ft"] if has_base else ["source_base", "source_ft"]
    for key in needed:
        if root.get(key) is None and not _is_misspelt(root, (key,)):
            problems.add(root.position, _missing_key((key,)))
    if sources is not None:
        for key in _SOURCE_ONLY:
            if root.get(key) is not None:
                refuse(key, f"`{key}` belongs inside the entries of `sources`, not beside them")
        inherited = has_base or root.get("source_base") is not None
        for index, source in enumerate(_entries(sources)):
            here = ("sources", index)
            if source.get("model") is not None:
                for key in ("source_ft", "source_base"):
                    if source.get(key) is not None:
                        message = (
                            f"`{key}` cannot stand beside `model`: a source is a model or a delta"
                        )
                        problems.add(source.keys[key], message)
                continue
            if not source.keys:
                continue
            if not inherited and source.get("source_base") is None:
                problems.add(source.position, _missing_key((*here, "source_base")))
            if source.get("source_ft") is None and not _is_misspelt(root, (*here, "source_ft")):
                problems.add(source.position, _missing_key((*here, "source_ft")))
        _check_names(sources, problems)
    _check_quantization(root, problems)
    check_vocabulary(root, problems)
    check_selections(root, problems)
    check_masks(root, problems)
    check_renames(root, problems)
    _check_numerics(root, problems)
    for path, node in root.walk():
        if path[-1:] == ("masks",) or path == ("output", "dtype") or _is_parameter(node):
            _check_order(node, problems)


def _gives_target(root: Node) -> bool:
    """Whether the first source is a model, which a method that needs no target begins with."""
    sources = root.get("sources")
    entries = [] if sources is None else _entries(sources)
    return root.get("method") is not None and bool(entries) and entries[0].get("model") is not None


def _check_quantization(root: Node, problems: Problems) -> None:
    """Weights in 8 bits again are the target's format: its dtypes, and its config that tells it."""
    quantization = root.at(("output", "quantization"))
    if quantization.value != "keep":
        return
    for key, fits in (("dtype", None), ("config", "target")):
        other = root.at(("output",)).get(key)
        if other is not None and other.value != fits:
            words = (
                f"`quantization: keep` writes the target's {key}: `{key}` cannot stand beside it"
            )
            problems.add(root.key_position(("output", key)), words)


def _elsewhere(place: Position, seen_from: Position) -> str:
    """Another place of the plan, as a message about `seen_from` names it."""
    same_file = place.line and place.file == seen_from.file
    return f"line {place.line}" if same_file else str(place)


def _is_misspelt(root: Node, path: Path, form: type[BaseModel] = PlanKeys) -> bool:
    """Whether a missing key stands there under a wrong name, which is told as an unknown key."""
    known = written_keys(_model_at(root, path[:-1], form))
    written = [key for key in root.at(path[:-1]).keys if key not in known]
    return any(nearest(key, known) == [path[-1]] for key in written)


def _check_names(sources: Node, problems: Problems) -> None:
    """Names of sources, given or by number, must differ."""
    seen: set[str] = set()
    for index, source in enumerate(_entries(sources)):
        node = source.get("name")
        name = node.value if node else f"source{index + 1}"
        if not isinstance(name, str):
            continue
        if name in seen:
            place = node.position if node else source.position
            problems.add(place, f"two sources are named `{excerpt(name)}`; names must differ")
        seen.add(name)


def _check_order(rules: Node, problems: Problems) -> None:
    """An entry without selector takes every tensor: what follows it would never be used."""
    catch_all: Node | None = None
    for entry in _entries(rules):
        if catch_all is not None:
            line, same = catch_all.position.line, catch_all.position.file == entry.position.file
            before = f"the entry of line {line}" if line and same else "an earlier entry"
            message = f"never used: {before} has no selector and takes every tensor"
            problems.add(entry.position, message)
            return
        if entry.keys and entry.keys.keys().isdisjoint(SELECTING):
            catch_all = entry


def _check_numerics(root: Node, problems: Problems) -> None:
    """Arithmetic of 16 bits is there to compare with who rounds so, and for nothing else."""
    written = root.at(("numerics", "compute_dtype"))
    if written.value not in ("bfloat16", "float16"):
        return
    if root.at(("numerics",)).get("compatibility") is None:
        problems.add(
            written.position,
            "`numerics.compute_dtype`: expected auto, float32 or float64, found "
            f"'{written.value}'; what is written is `output.dtype`, and rounding on the way as "
            "mergekit does takes `compatibility: mergekit` beside it",
        )


def _is_parameter(node: Node) -> bool:
    """Whether a list is one of a parameter's rules."""
    return any(entry.get("value") is not None for entry in _entries(node))


def _entries(node: Node) -> list[Node]:
    return node.value if isinstance(node.value, list) else []


_EXPECTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "a text",
    "bool_type": "true or false",
    "list_type": "a list",
    "model_type": "a mapping of keys to values",
}


def _told(
    root: Node, kind: str, path: Path, context: dict[str, Any], form: type[BaseModel]
) -> tuple[Position, str]:
    """One pydantic error as a place and a sentence."""
    node = root.at(path)
    label = _label(_written(root, path))
    if kind == "extra_forbidden":
        return root.key_position(path), _unknown_key(root, path, form)
    if kind == "missing":
        return root.at(path[:-1]).position, _missing_key(path)
    if kind == "finite_number":
        return node.position, f"{label}: expected a finite number, found {excerpt(node.written)}"
    if kind == "too_short":
        found = "mapping" if isinstance(node.value, dict) else "list"
        return node.position, f"{label}: expected at least one entry, found an empty {found}"
    error = context.get("error")
    if isinstance(error, ValueError) and not isinstance(error, NotExpected):
        return node.position, f"{label}: {error}"
    hint = ""
    if isinstance(error, NotExpected):
        expected, hint = str(error), error.hint
    elif kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        expected = f"expected one of {', '.join(choices)}"
    else:
        expected = f"expected {_EXPECTED.get(kind, 'another value')}"
        if kind == "string_type" and not isinstance(node.value, list | dict):
            of_environment = node.via.startswith("`${env:")
            hint = "; in a longer text it would be one" if of_environment else "; put it in quotes"
        elif kind == "float_type" and isinstance(node.value, str) and _is_number(node.value):
            hint = "; remove the quotes"
    return node.position, f"{label}: {expected}, found {node.described}{hint}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_NEEDED = {
    "version": "a plan begins with `version: 1`",
    "target": "the model that receives the delta",
    "source_base": "the model that `source_ft` was fine-tuned from",
    "source_ft": "the fine-tuned model",
    "adapter": "the folder or hub name of the adapter",
    "rows": "union or tokenizer",
    "from": "whose row it is: zeros, target, source_ft or the name of a source",
}


def _missing_key(path: Path) -> str:
    key = str(path[-1])
    return f"{_label(path)} is missing" + (f": {_NEEDED[key]}" if key in _NEEDED else "")


def _unknown_key(root: Node, path: Path, form: type[BaseModel]) -> str:
    key = str(path[-1])
    known = list(written_keys(_model_at(root, path[:-1], form)))
    hint = did_you_mean(key, known)
    if not hint and len(path) == 1 and form is PlanKeys:
        elsewhere = (("output", OutputKeys), ("numerics", NumericsKeys), ("sources", SourceKeys))
        for section, model in elsewhere:
            if key in model.model_fields:
                hint = f"; it belongs under `{section}`"
    if not hint:
        hint = f"; the keys here are {', '.join(known)}"
    return f"unknown key `{excerpt(key)}`{hint}"


def _model_at(root: Node, path: Path, form: type[BaseModel]) -> type[BaseModel]:
    """The model that describes the mapping at `path`."""
    model = form
    place = 0
    while place < len(path):
        step, place = path[place], place + 1
        if isinstance(step, str):
            annotation = written_keys(model)[step]
            if get_origin(annotation) is dict:  # of names that the plan gives
                place += 1
            value = root.at(path[:place]).plain
            while place < len(path) and isinstance(path[place], int):
                place += 1
            model = _fitting(_models_in(annotation), value)
            if model is Keys:  # a parameter, whose keys depend on what is written
                model = form_of(value) or model
    return model


def _fitting(models: list[type[BaseModel]], value: Any) -> type[BaseModel]:
    """Of several models that may describe a mapping, the first that has one of its keys."""
    keys = value if isinstance(value, dict) else {}
    return next(
        (each for each in models if not written_keys(each).keys().isdisjoint(keys)), models[0]
    )


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models inside an annotation such as ``list[MaskKeys] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _written(root: Node, path: Path) -> Path:
    """`path` as far as the plan has it: without what a short form leaves out."""
    for length in range(len(path)):
        if root.at(path[: length + 1]) is root.at(path[:length]):
            return path[:length]
    return path


def _label(path: Path) -> str:
    """As ``--set`` would name it: `` `masks.0.scale` ``."""
    return f"`{excerpt('.'.join(map(str, path)))}`"
