"""Reading what a command is given: a plan, a chain, or a mergekit configuration, which is one of
both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mergeengine.chain import recognition
from mergeengine.errors import PlanError
from mergeengine.mergekit.recognition import is_config, is_several
from mergeengine.plan import load
from mergeengine.plan.files import UnreadableError, read_text, text_of
from mergeengine.plan.plan import Plan
from mergeengine.plan.problems import Problems

if TYPE_CHECKING:
    from mergeengine.chain.chain import Chain
    from mergeengine.mergekit.translate import Translated

_COMPATIBLE = ("numerics.compatibility=mergekit",)


def is_chain(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a chain, or several mergekit configurations."""
    try:
        return recognition.is_chain(path) or is_several(read_text(Path(path)))
    except UnreadableError:
        return False


def is_configs(path: str | os.PathLike[str]) -> bool:
    """Whether a file is of mergekit configurations, one or several."""
    try:
        return is_config(read_text(Path(path)))
    except UnreadableError:
        return False


def load_plan(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Plan:
    """Read and check the plan, or the mergekit configuration, ``path``; `overrides` are ``--set``
    texts (``scaling=0.5``), of the plan that a configuration becomes.

    Opens no model and asks no hub. PlanError with every problem found, each as
    ``file:line:column: message``; the file is named as `path` names it.
    """
    return parse_plan(text_of(path), path, overrides)


def parse_plan(text: str, file: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Plan:
    """As `load_plan`, for a text that stands in ``file``, which need not exist."""
    if not is_config(text):
        return load.parse_plan(text, file, overrides)
    problems, translated = translated_from(text, file, overrides)
    if translated.several:
        raise PlanError(f"{os.fspath(file)}: these are several configurations: a chain, no plan")
    plan = load.plan_of(translated.root, text, file, overrides, problems)
    return replace(plan, notes=translated.notes, warnings=(*translated.warnings, *plan.warnings))


def load_chain(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), output: Path | None = None
) -> Chain:
    """The same for a chain, or several configurations in one file, whose result goes to ``output``
    if that is given."""
    return parse_chain(text_of(path), path, overrides, output)


def parse_chain(
    text: str,
    file: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    output: Path | None = None,
) -> Chain:
    """As `load_chain`, for a text that stands in ``file``, which need not exist."""
    from mergeengine.chain import load as chains

    if not is_config(text):
        return chains.parse_chain(text, file, overrides)
    problems, translated = translated_from(text, file, overrides, output)
    if not translated.several:
        raise PlanError(f"{os.fspath(file)}: this is one configuration: a plan, no chain")
    chain = chains.chain_of(translated.root, file, overrides, problems)
    warnings = (*translated.notes, *translated.warnings, *chain.warnings)
    return replace(chain, warnings=warnings)


def translated_from(
    text: str,
    file: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    output: Path | None = None,
) -> tuple[Problems, Translated]:
    """What a mergekit configuration says as a plan or chain, to which problems may be added."""
    from mergeengine.mergekit.translate import translate

    shown, text = os.fspath(file), text.removeprefix("\ufeff")
    problems = Problems()
    problems.open(shown, text)
    compatible = any(each.replace(" ", "") in _COMPATIBLE for each in overrides)
    return problems, translate(
        text, shown, Path(file), problems, compatible=compatible, output=output
    )
