"""The actions of mask entries: which go together, and what their keys become."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as FilePath

from mergeengine.plan.document import Node, Path
from mergeengine.plan.problems import Problems
from mergeengine.plan.schema import MaskKeys
from mergeengine.values.actions import (
    Above,
    Action,
    Drop,
    FileMask,
    Keep,
    Orthogonal,
    Ranked,
    Rows,
    Sign,
)
from mergeengine.values.excerpts import excerpt
from mergeengine.values.nearest import did_you_mean, nearest
from mergeengine.values.references import ModelReference, local_path, parse_reference

ACTIONS = (
    *("scale", "keep", "orthogonal_to", "rows", "tokens", "file", "above", "top", "bottom"),
    *("sign", "drop"),
)
_BELONGS = {"of": "keep", "beta": "orthogonal_to", "default": "file"}


def keep_of(keys: MaskKeys) -> Keep | None:
    """The entry's `keep`, if it has one."""
    return None if keys.keep is None else Keep(keys.keep, keys.of)


def _file_of(text: str, folder: FilePath) -> ModelReference:
    """Unlike a model's path, that of a file needs no ``./``."""
    if "://" in text:
        return parse_reference(text, folder)
    return ModelReference(text, path=local_path(text, folder))


def actions_of(keys: MaskKeys, folder: FilePath) -> tuple[Action, ...]:
    """All of an entry but `scale` and `keep`; `folder` is where relative paths start."""
    found: list[Action] = []
    if keys.orthogonal_to is not None:
        found.append(Orthogonal(1.0 if keys.beta is None else keys.beta))
    if keys.rows is not None:
        found.append(Rows("rows", tuple(keys.rows)))
    if keys.tokens is not None:
        found.append(Rows("tokens", tuple(keys.tokens)))
    if keys.file is not None:
        file = _file_of(keys.file, folder)
        found.append(FileMask(file, keys.default))
    if keys.above is not None:
        found.append(Above(keys.above))
    if keys.top is not None:
        found.append(Ranked("top", keys.top))
    if keys.bottom is not None:
        found.append(Ranked("bottom", keys.bottom))
    if keys.sign is not None:
        name = keys.sign.removeprefix("agree_with").strip()
        found.append(Sign(None if keys.sign == "target_shift" else name))
    if keys.drop is not None:
        found.append(Drop(keys.drop))
    return tuple(found)


def check_masks(root: Node, problems: Problems) -> None:
    """What is wrong with actions together, or with the sources that they name."""
    sources = root.get("sources")
    listed = sources.value if sources is not None and isinstance(sources.value, list) else []
    names = [_name(source, number) for number, source in enumerate(listed)] or ["source1"]
    for source, path, entry in _mask_entries(root, listed):
        own = None if source is None else names[source]
        for key, message in _entry_problems(entry, ".".join(map(str, path)), own, names):
            place = entry.position if key is None else entry.keys[key]
            problems.add(place, message)


def _mask_entries(root: Node, sources: list[Node]) -> Iterator[tuple[int | None, Path, Node]]:
    """Every mask entry that is a mapping: of which source (None: the plan's), and where."""
    lists: list[tuple[int | None, Path, Node | None]] = [(None, ("masks",), root.get("masks"))]
    for number, source in enumerate(sources):
        lists.append((number, ("sources", number, "masks"), source.get("masks")))
    for of, path, masks in lists:
        entries = masks.value if masks is not None else None
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            if isinstance(entry.value, dict):
                yield of, (*path, index), entry


def _entry_problems(
    entry: Node, label: str, own: str | None, names: list[str]
) -> Iterator[tuple[str | None, str]]:
    """The key (None: the entry itself) and the sentence of each problem."""
    there = [key for key in ACTIONS if key in entry.keys]
    known = MaskKeys.model_fields
    misspelt = any(nearest(key, ACTIONS) for key in entry.keys if key not in known)
    if not there and not misspelt:
        listed = ", ".join(f"`{key}`" for key in ACTIONS)
        yield None, f"`{label}` needs an action: one of {listed}"
    for one, other in (("top", "bottom"), ("rows", "tokens")):
        if one in there and other in there:
            yield other, f"`{other}` cannot stand beside `{one}`; choose one of them"
    for key, needed in _BELONGS.items():
        if key in entry.keys and needed not in there:
            yield key, f"`{key}` belongs to `{needed}`, which is not there"
    if "keep" in there:
        yield from _keep_problems(entry, there, own, names)
    named = _text(entry, "of")
    if named is not None and named not in names:
        yield "of", _unknown_source(named, names)
    sign = _text(entry, "sign") or ""
    if sign.startswith("agree_with "):
        name = sign.removeprefix("agree_with").strip()
        if name not in names:
            yield "sign", _unknown_source(name, names)
        elif name == own or len(names) == 1:
            yield "sign", f"`{excerpt(name)}` agrees with itself; name another source"


def _keep_problems(
    entry: Node, there: list[str], own: str | None, names: list[str]
) -> Iterator[tuple[str, str]]:
    others = [key for key in there if key != "keep"]
    if others:
        message = "decides the whole tensor, so no other action can stand beside `keep`"
        yield others[0], f"`keep` {message}"
    if _text(entry, "keep") != "source_ft":
        if "of" in entry.keys:
            yield "of", "`of` names the source of `keep: source_ft`; `keep: target` has none"
    elif own is not None:
        message = "decides the whole tensor, whatever the other sources do"
        yield "keep", f"`keep: source_ft` {message}; write it under the plan's own `masks`"
    elif len(names) > 1 and "of" not in entry.keys:
        listed = ", ".join(map(excerpt, names))
        yield "keep", f"`keep: source_ft` needs `of: NAME`, the source that is meant: {listed}"


def _unknown_source(name: str, names: list[str]) -> str:
    hint = did_you_mean(name, names) or f"; the sources are {', '.join(map(excerpt, names))}"
    return f"no source is named `{excerpt(name)}`{hint}"


def _name(source: Node, number: int) -> str:
    return _text(source, "name") or f"source{number + 1}"


def _text(node: Node, key: str) -> str | None:
    child = node.get(key)
    return child.value if child is not None and isinstance(child.value, str) else None
