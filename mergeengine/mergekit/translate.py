"""From a mergekit configuration to the plan that says the same, or of several to a chain."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mergeengine.mergekit.arrangement import Arrangement, arrange, check_layers, model_node
from mergeengine.mergekit.config import Config, Told, read_config
from mergeengine.mergekit.models import Model, Models
from mergeengine.mergekit.nodes import mapping, number, scalar, sequence
from mergeengine.mergekit.parameters import Given, chooses_by_name, given
from mergeengine.mergekit.vocabulary import Vocabulary, vocabulary
from mergeengine.plan.document import Node, place_in, read_documents
from mergeengine.plan.problems import Problems
from mergeengine.plan.variables import escaped
from mergeengine.values.excerpts import excerpt
from mergeengine.values.positions import Position

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]+")
# What a chain's step cannot be called.
_TAKEN = ("output", "scratch", "python", "input", "target", "source_base", "source_ft", "base")


@dataclass(frozen=True, slots=True)
class Translated:
    """A plan's tree, or a chain's (``several``), and what is to be told of the configuration."""

    root: Node
    several: bool
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def translate(
    text: str,
    shown: str,
    file: Path,
    problems: Problems,
    *,
    compatible: bool = False,
    output: Path | None = None,
) -> Translated:
    """What the configuration ``text`` says, as a plan that stands beside it says it.

    ``compatible``: rounding is to be mergekit's, for which `dtype` is that of the arithmetic too.
    ``output`` is where the result of several goes: of the one without a name, else of the last.
    PlanError with every problem found.
    """
    told = Told()
    documents = read_documents(text, place_in(shown), problems)
    for each in documents:
        if not isinstance(each.value, dict):
            problems.add(each.position, f"expected lines of `key: value`, found {each.described}")
    if problems.found:
        raise problems.error()
    several = len(documents) > 1
    folder = file.parent
    if several:
        root = _chain(documents, Models(folder, problems), told, compatible, output)
    else:
        root = _plan(documents[0], Models(folder, problems), told, compatible)
    if problems.found or root is None:
        raise problems.error()
    for _, node in root.walk():  # what would be a variable in a plan is none here
        if isinstance(node.value, str):
            node.value = node.written = escaped(node.value)
    return Translated(root, several, tuple(told.notes), tuple(told.warnings))


# --- one configuration -----------------------------------------------------------------------


def _plan(root: Node, models: Models, told: Told, compatible: bool) -> Node | None:
    """None, and problems, where the configuration is wrong."""
    problems = models.problems
    config = read_config(root, models, problems, told)
    if config is None:
        return None
    check_layers(config, problems)
    arranged = arrange(config, problems)
    if arranged is None:
        return None
    return _Plan(config, arranged, models, told, compatible).root()


@dataclass(frozen=True, slots=True)
class _Plan:
    config: Config
    arranged: Arrangement
    models: Models
    told: Told
    compatible: bool

    def root(self) -> Node:
        config, at = self.config, self.config.method_position
        parameters = given(config, self.arranged, self.models.problems, self.told)
        names = self._names()
        rows = vocabulary(config, self.models, names, self.models.problems)
        base = self._base()
        entries: dict[str, Node | None] = {
            "version": number(1, config.position),
            "name": config.name,
            **base,
            "method": scalar(config.method.name, at),
            "parameters": mapping(parameters.shared, at) if parameters.shared else None,
            **self._sources(parameters, rows),
            "vocabulary": rows.rows,
            "output": self._output(rows, whose="target" in base or "base" in base),
            "numerics": self._numerics(),
        }
        numbers = [*parameters.shared.values(), *(each for each in parameters.weights if each)]
        numbers += [each for own in parameters.own for each in own.values()]
        if chooses_by_name(numbers):
            entries["on_unmatched"] = scalar("warn", at)
        return mapping(entries, config.position)

    @property
    def _donor(self) -> Model:
        """The model whose config and tokenizer the output has."""
        return next(self.config.models)

    def _base(self) -> dict[str, Node | None]:
        if self.arranged.base is not None:
            return {"base": model_node(self.arranged.base)}
        first = self.arranged.sources[0][0].input.model
        if self.config.stacked or self._donor == first:
            return {}
        return {"target": self._donor.node()}

    def _names(self) -> Mapping[Model, str]:
        """What the plan calls the models: `target` where they are that, else a source's name."""
        found: dict[Model, str] = {}
        for cell in self.arranged.base or ():
            found.setdefault(cell.input.model, "target")
        taken: set[str] = set()
        for column in self.arranged.sources:
            model = column[0].input.model
            word = _NOT_IN_NAMES.sub("-", model.name).strip("-") or "source"
            name = next(
                each for each in (word, *(f"{word}-{n}" for n in range(2, 99))) if each not in taken
            )
            taken.add(name)
            found.setdefault(model, name)
        return found

    def _sources(self, parameters: Given, rows: Vocabulary) -> dict[str, Node | None]:
        change = self.arranged.base is not None
        key = "source_ft" if change else "model"
        base = self.arranged.base[0].input.model if self.arranged.base else None
        names = self._names()
        listed: list[dict[str, Node | None]] = []
        for column, weight, own in zip(
            self.arranged.sources, parameters.weights, parameters.own, strict=True
        ):
            model, at = column[0].input.model, column[0].input.position
            listed.append(
                {
                    "name": scalar(names[model], at) if rows.named else None,
                    key: model_node(column, base),
                    "scaling": weight,
                    "parameters": mapping(own, at) if own else None,
                }
            )
        if len(listed) == 1 and change and listed[0]["name"] is None:
            return {
                each: listed[0][each] for each in (key, "scaling")
            }  # parameters are shared then
        at = self.arranged.sources[0][0].input.position
        places = [column[0].input.position for column in self.arranged.sources]
        entries = [mapping(each, place) for each, place in zip(listed, places, strict=True)]
        return {"sources": sequence(entries, at)}

    def _output(self, rows: Vocabulary, *, whose: bool) -> Node | None:
        """``whose``: the plan has a target, whose files are taken and not the first source's."""
        config, at = self.config, self.config.method_position
        files = scalar("target", at) if whose else None
        donor = self._donor
        if not whose and donor != self.arranged.sources[0][0].input.model:
            files = scalar(donor.reference, donor.position)
        tokenizer = files
        if rows.donor is not None:
            tokenizer = scalar(rows.donor.reference, rows.donor.position)
        entries = {
            "dtype": config.out_dtype or config.dtype,
            "tokenizer": tokenizer,
            "generation_config": files,
        }
        if config.chat_template is not None:
            entries["chat_template"] = config.chat_template
        return mapping(entries, at) if any(entries.values()) else None

    def _numerics(self) -> Node | None:
        dtype = self.config.dtype
        if not self.compatible or dtype is None:
            return None
        return mapping({"compute_dtype": dtype}, dtype.position)


# --- several ---------------------------------------------------------------------------------


def _chain(
    documents: Sequence[Node], models: Models, told: Told, compatible: bool, output: Path | None
) -> Node | None:
    """Each document a step; those that others take are made inside of them."""
    problems = models.problems
    names = list(_names_of(documents, problems))
    ids: dict[str, str] = {}
    for index, (name, at) in enumerate(names):
        if name in ids:
            problems.add(at, f"two configurations have the name `{excerpt(name)}`")
        ids.setdefault(name, _id(name, index, ids.values()))
    named = {name for (name, _), each in zip(names, documents, strict=True) if each.get("name")}
    models = replace(models, steps={name: ids[name] for name in named})
    result = next((name for name, _ in names if name not in named), names[-1][0])
    steps: list[dict[str, Node | None]] = []
    for (name, at), document in zip(names, documents, strict=True):
        if isinstance(document.value, dict):
            document.value.pop("name", None)
            document.keys.pop("name", None)
        plan = _plan(document, models, told, compatible)
        steps.append({"id": scalar(ids[name], at), "plan": plan})
    if problems.found:
        return None
    entries = []
    for step, (name, at) in zip(steps, names, strict=True):
        if name == result and output is not None:
            step["output"] = mapping({"path": scalar(str(output.absolute()), at)}, at)
        elif ids[name] in models.used:
            step["keep"] = scalar(False, at)
        elif name != ids[name]:
            step["output"] = mapping({"path": scalar(f"out/{name}", at)}, at)
        entries.append(mapping(step, at))
    at = documents[0].position
    return mapping({"version": number(1, at), "steps": sequence(entries, at)}, at)


def _names_of(documents: Sequence[Node], problems: Problems) -> Iterator[tuple[str, Position]]:
    without = 0
    for each in documents:
        name = each.get("name")
        if name is not None and name.written:
            yield name.written, name.position
            continue
        without += 1
        if without > 1:
            message = "`name` is missing: of several configurations only one may have none"
            problems.add(each.position, message)
        yield "merged" if without == 1 else f"merged{without}", each.position


def _id(name: str, index: int, others: Iterable[str]) -> str:
    """A step's id: the name as far as its characters may stand in one."""
    word = _NOT_IN_NAMES.sub("-", name).strip("-_")[:60]
    if not word or not word[0].isalpha():
        word = f"merge-{word}".rstrip("-")
    return f"{word}-{index + 1}" if word in (*_TAKEN, *others) else word
