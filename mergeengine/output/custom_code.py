"""Custom modelling code beside the weights: copied as bytes, never imported nor executed."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.small_files import read_bytes, read_json
from mergeengine.output.companion_files import (
    Companion,
    CompanionSet,
    candidates,
    copies,
)
from mergeengine.output.tokenizer_files import PROCESSOR_CONFIGS

# `modeling_x.Model`, or `org/name--modeling_x.Model` for code that stays in another repository.
_REFERENCE = re.compile(r"(?:(?P<repo>[^\s]+)--)?(?P<module>\w+)\.\w+")
_RELATIVE_IMPORT = re.compile(rb"^[ \t]*(?:from|import)[ \t]+\.(\w+)", re.MULTILINE)
_MODULE = re.compile(r"\w+\.py")


def choose_code(config: Checkpoint | None, tokenizer: Checkpoint | None) -> CompanionSet:
    """Code that the configs' ``auto_map`` entries name.

    Of the config's model all modules beside it (they import one another), of the tokenizer's
    model those that its own files name and what these import. Of two different files of one
    name the config's model wins.
    """
    notes: list[str] = []
    warnings: list[str] = []
    chosen: dict[str, Companion] = {}
    if config is not None:
        named, outside = _named(config, [config.config or {}])
        if named:
            modules = _modules(config)
            chosen = {file.name: file for file in copies(config, modules)}
            notes.append(_copied(config, modules))
            warnings += _absent(config, named - set(modules))
        notes += outside
    if tokenizer is not None:
        files = ("tokenizer_config.json", *PROCESSOR_CONFIGS)
        named, outside = _named(tokenizer, [read_json(tokenizer, name) or {} for name in files])
        present = _with_imports(tokenizer, named)
        if new := sorted(present - set(chosen)):
            notes.append(_copied(tokenizer, new))
        notes += [note for note in outside if note not in notes]
        warnings += [text for text in _absent(tokenizer, named - present) if text not in warnings]
        for file in copies(tokenizer, sorted(present)):
            kept = chosen.setdefault(file.name, file)
            if kept is not file and config is not None and not _same(kept, file):
                warnings.append(
                    f"{file.name} differs between {config.reference.text} and "
                    f"{tokenizer.reference.text}: that of {config.reference.text} is written; "
                    f"check that the tokenizer works with it"
                )
    return CompanionSet(tuple(chosen.values()), tuple(notes), tuple(warnings))


def _named(model: Checkpoint, configs: Iterable[Mapping[str, Any]]) -> tuple[set[str], list[str]]:
    """File names that ``auto_map`` entries mean, and notes on code of other repositories."""
    names: set[str] = set()
    repositories: set[str] = set()
    for config in configs:
        entries = config.get("auto_map")
        for entry in entries.values() if isinstance(entries, dict) else ():
            for reference in entry if isinstance(entry, list) else [entry]:
                if isinstance(reference, str) and (found := _REFERENCE.fullmatch(reference)):
                    if found["repo"]:
                        repositories.add(found["repo"])
                    else:
                        names.add(f"{found['module']}.py")
    return names, [
        f"{model.reference.text} uses custom code that stays in the repository {repository}"
        for repository in sorted(repositories)
    ]


def _modules(model: Checkpoint) -> list[str]:
    return [name for name in candidates(model) if _MODULE.fullmatch(name)]


def _with_imports(model: Checkpoint, names: set[str]) -> set[str]:
    """Those of the files that the model has, and what they import from beside them."""
    available = set(_modules(model))
    found: set[str] = set()
    waiting = names & available
    while waiting:
        name = waiting.pop()
        found.add(name)
        imported = _RELATIVE_IMPORT.findall(read_bytes(model, name) or b"")
        waiting |= {f"{module.decode()}.py" for module in imported} & available - found
    return found


def _same(one: Companion, other: Companion) -> bool:
    with one.open() as first, other.open() as second:
        return first.read() == second.read()


def _copied(model: Checkpoint, names: Iterable[str]) -> str:
    return f"custom code of {model.reference.text} copied, not executed: {', '.join(names)}"


def _absent(model: Checkpoint, names: set[str]) -> list[str]:
    if not names:
        return []
    return [
        f"{model.reference.text} names custom code that it does not have: "
        f"{', '.join(sorted(names))}; the output will not load without it"
    ]
