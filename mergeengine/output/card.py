"""The model card: README.md of the output, the same for the same plan on every machine."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.small_files import open_file

_README_LIMIT = 2**20
_LICENCE_LIMIT = 1024
_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_LICENCE_ENTRY = re.compile(r"^license:[^\n]*(?:\n(?:[ \t-][^\n]*)?)*", re.MULTILINE)
_LICENCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
_LOCAL = ("./", "../", "/", "~")


@dataclass(frozen=True, slots=True)
class MergedModel:
    """One input as the card names it; ``text`` is the reference as the plan has it."""

    role: str
    text: str
    revision: str | None = None
    licence: str | None = None

    @property
    def hub_id(self) -> str | None:
        text = self.text.removeprefix("hf://")
        return None if text.startswith(_LOCAL) or "://" in text else text.partition("@")[0]


_TRANSFER = """\
    merged = target + Σᵢ scalingᵢ · maskᵢ ⊙ (source_ftᵢ − source_baseᵢ)

A delta (what fine-tuning changed between `source_base` and `source_ft`) is added to `target`;
the plan below says which, how much of it, and for which tensors."""


def model_card(
    *,
    name: str,
    plan_text: str,
    references: Sequence[MergedModel],
    version: str,
    method: tuple[str, str] | None = None,
) -> str:
    """README.md with its front matter, for the plan as it was written.

    ``method``: the name and the paper of another method than transfer.
    """
    about = _TRANSFER
    if method is not None:
        about = (
            f"The method is `{_line(method[0])}` ({_line(method[1])}); the plan below says what is "
            "merged, with which parameters, and for which tensors."
        )
    front_matter = yaml.safe_dump(
        _front_matter(references), sort_keys=False, allow_unicode=True, default_flow_style=False
    )
    rows = "\n".join(
        f"| {_cell(model.role)} | {_cell(_shown(model))} | {_code(model.revision)} "
        f"| {_cell(model.licence or 'not stated')} |"
        for model in references
    )
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", plan_text)), default=0))
    return f"""\
---
{front_matter}---

# {_line(name)}

A merge of existing models. Its weights were computed from theirs, without any training:

{about}

| Role | Model | Revision | Licence |
|---|---|---|---|
{rows}

The licences of all of these models apply.

## How to reproduce

Made by mergeengine {_line(version)}. Save the plan as `plan.yaml` and run
`mergeengine run plan.yaml`; local paths in it start at its folder. `mergeengine.json` holds the
revisions of all inputs and a digest of every tensor; `mergeengine verify` checks them.

{fence}yaml
{plan_text.rstrip()}
{fence}
"""


def read_licence(checkpoint: Checkpoint) -> str | None:
    """``license`` of the front matter of the model's own card; None where none is stated.

    Only that entry is parsed: the front matter of a stranger may be long (evaluation results)
    or hostile (nesting, aliases).
    """
    path = checkpoint.companion("README.md")
    if path is None:
        return None
    with open_file(path) as file:
        text = file.read(_README_LIMIT).decode(errors="replace").removeprefix("\ufeff")
    front_matter = _FRONT_MATTER.match(text)
    entry = _LICENCE_ENTRY.search(front_matter[1]) if front_matter else None
    if entry is None or len(entry[0]) > _LICENCE_LIMIT:
        return None
    try:
        value = yaml.safe_load(entry[0])["license"]
    except (yaml.YAMLError, TypeError, ValueError, RecursionError):
        return None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) and _LICENCE_NAME.fullmatch(value) else None


def _front_matter(references: Sequence[MergedModel]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    base_models = list(dict.fromkeys(model.hub_id for model in references if model.hub_id))
    if base_models:
        entries["base_model"] = base_models
        entries["base_model_relation"] = "merge"
    licences = {model.licence for model in references}
    if licences - {None}:
        entries["license"] = licences.pop() if len(licences) == 1 else "other"
    entries["library_name"] = "transformers"
    entries["tags"] = ["merge", "mergeengine"]
    return entries


def _shown(model: MergedModel) -> str:
    """The reference; of an absolute path only the name, since the rest is this machine's."""
    if model.hub_id is not None:
        return f"[{model.hub_id}](https://huggingface.co/{model.hub_id})"
    if model.text.startswith("/"):
        return f"{PurePosixPath(model.text).name} (local)"
    return model.text if "://" in model.text else f"{model.text} (local)"


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")


def _code(text: str | None) -> str:
    return f"`{_cell(text)}`" if text else "-"


def _line(text: str) -> str:
    return " ".join(text.split())
