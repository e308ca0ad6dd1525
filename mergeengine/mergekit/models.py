"""The models of a configuration: what it calls them, and what a plan calls them."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergeengine.mergekit.nodes import mapping, scalar
from mergeengine.plan.document import Node
from mergeengine.plan.problems import Problems
from mergeengine.values.excerpts import excerpt
from mergeengine.values.nearest import did_you_mean
from mergeengine.values.positions import Position
from mergeengine.values.references import check_path, check_reference

_EXPECTED = "expected a model: a path, org/name[@revision] on the hub, or either with +ADAPTER"


@dataclass(frozen=True, slots=True)
class Model:
    """A model, or an adapter on it, by the references of a plan; equal ones are one model.

    ``written`` is its path as the configuration has it.
    """

    reference: str
    adapter: str | None = None
    position: Position = field(compare=False, default=Position("", 0, 0))
    written: str = field(compare=False, default="")

    def node(self, base: Model | None = None) -> Node:
        """As a plan names it; an adapter of ``base`` need not say so."""
        own = scalar(self.reference, self.position)
        if self.adapter is None:
            return own
        adapter = scalar(self.adapter, self.position)
        known = base is not None and base.adapter is None and base.reference == self.reference
        return mapping({"adapter": adapter, "base": None if known else own}, self.position)

    @property
    def name(self) -> str:
        """A word for it: the end of its path."""
        return Path(self.adapter or self.reference).name.partition("@")[0]


@dataclass(frozen=True, slots=True)
class Models:
    """Reads the models of one file.

    A path is what lies there in the ``folder`` of the file, or else, as mergekit has it, in the
    working directory; where nothing does, and it does not begin as a path (``models/a``), a name
    on the hub. ``steps`` are the names of other configurations of the file, and the ids of the
    steps that these become; ``used`` the ids of those that were named.
    """

    folder: Path
    problems: Problems
    steps: Mapping[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def read(self, node: Node) -> Model | None:
        """The model that a value names; None, and a problem, where it names none."""
        match node.value:
            case str():
                path, plus, adapter = node.value.partition("+")
                if "+" not in adapter and path and (adapter or not plus):
                    return self._model(path, adapter or None, node.position)
            case dict():
                return self._mapping(node)
        self.problems.add(node.position, f"{_EXPECTED}, found {node.described}")
        return None

    def _mapping(self, node: Node) -> Model | None:
        check_keys(node, ("model", "lora", "override_architecture"), self.problems)
        if node.get("override_architecture") is not None:
            self.problems.add(
                node.keys["override_architecture"],
                "`override_architecture` is not supported: tensors are found by their names here",
            )
        model = node.get("model")
        if model is None:
            self.problems.add(node.position, "`model` is missing: the path or name of the model")
            return None
        path = self._path(model)
        lora = node.get("lora")
        adapter = None if lora is None or lora.value is None else self._path(lora)
        return None if path is None else self._model(path, adapter, node.position)

    def _path(self, node: Node) -> str | None:
        """``{path: ..., revision: ...}``, or that as a text."""
        if isinstance(node.value, str) and node.value:
            return node.value
        if not isinstance(node.value, dict):
            self.problems.add(node.position, f"{_EXPECTED}, found {node.described}")
            return None
        check_keys(node, ("path", "revision"), self.problems)
        path, revision = node.get("path"), node.get("revision")
        if path is None or not isinstance(path.value, str):
            self.problems.add(node.position, "`path` is missing: the path or name of the model")
            return None
        if revision is None or revision.value is None:
            return path.value
        return f"{path.value}@{revision.written}"

    def _model(self, path: str, adapter: str | None, at: Position) -> Model | None:
        reference = self._reference(path, at)
        lora = None if adapter is None else self._reference(adapter, at)
        if reference is None or (lora is None and adapter is not None):
            return None
        return Model(reference, lora, at, path)

    def _reference(self, written: str, at: Position) -> str | None:
        path, _, revision = written.partition("@")
        found = self.steps.get(path) or self._local(path)
        if path in self.steps:
            self.used.add(self.steps[path])
        if found is not None and revision:
            message = f"`{excerpt(written)}` is on this machine, where there are no revisions"
            self.problems.add(at, message)
            return None
        try:
            if found is None:
                check_reference(written)
            elif found not in self.steps.values():
                check_path(found)
        except ValueError as error:
            self.problems.add(at, str(error))
            return None
        # In a chain a word alone is the name of a step.
        return found or (f"hf://{written}" if self.steps and "/" not in written else written)

    def _local(self, path: str) -> str | None:
        """A path as a plan beside the configuration writes it; None: nothing lies there."""
        if path.startswith(("/", "~")):
            return path
        said = path.startswith(("./", "../")) or path in (".", "..")
        if "://" in path and not said:
            return None
        if (self.folder / path).exists():
            return path if said else f"./{path}"
        if Path(path).exists():
            there = os.path.relpath(path, self.folder)
            return there if there.startswith("..") else f"./{there}"
        return path if said else None


def check_keys(node: Node, known: Collection[str], problems: Problems) -> None:
    """A problem for every key of a mapping that is not known."""
    for key, at in node.keys.items():
        if key not in known:
            hint = did_you_mean(key, known) or f"; the keys here are {', '.join(known)}"
            problems.add(at, f"unknown key `{excerpt(key)}`{hint}")
