"""What a word stands for in a chain: a step, or one of its `models`.

In a chain a reference without ``/`` that is no local path is always such a name, never a model of
the hub; those without organisation (``gpt2``) are named under `models`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from mergeengine.plan.document import Node
from mergeengine.plan.document import Path as KeyPath
from mergeengine.plan.plan import Plan, Role
from mergeengine.plan.problems import Problems
from mergeengine.values.excerpts import excerpt
from mergeengine.values.nearest import did_you_mean
from mergeengine.values.positions import Position
from mergeengine.values.references import ModelReference

_ROLES = ("target", "source_ft")
_MODELS = ("base", "target", "source_base", "source_ft")
_OF_SOURCES = ("model", "source_base", "source_ft")
_ADAPTER = ("adapter", "base")
_FILES = ("tokenizer", "config", "generation_config")


@dataclass(slots=True)
class Taken:
    """The names that one step takes, in the order in which they are written."""

    steps: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Names:
    """The names of a chain. ``steps`` says of each step whether it makes a model."""

    steps: Mapping[str, bool]
    models: Collection[str]
    problems: Problems

    def take(self, name: str, at: Position, taken: Taken) -> bool:
        """Note that a step takes what `name` stands for; a problem where it is nothing."""
        if name in self.models:
            if name not in taken.models:
                taken.models.append(name)
            return True
        if name in self.steps:
            if not self.steps[name]:
                self.problems.add(at, f"the step `{name}` is an evaluation: it makes no model")
            if name not in taken.steps:
                taken.steps.append(name)
            return True
        known = [*self.steps, *self.models]
        hint = did_you_mean(name, known) or (
            f"; a model of the hub without organisation is named under `models`: "
            f"{{{excerpt(name)}: {excerpt(name)}}}"
            if known
            else ""
        )
        self.problems.add(at, f"there is no step and no model `{excerpt(name)}`{hint}")
        return False


def is_name(text: str) -> bool:
    """Whether a reference is a name of the chain: a word without slash that is no local path."""
    return "/" not in text and not text.startswith((".", "~"))


def take_in_plan(
    root: Node, names: Names, models: Mapping[str, ModelReference], taken: Taken
) -> None:
    """Note what a plan's references take. Names of models become what these are, in place."""
    for path in _references(root):
        node = root.at(path)
        text = node.value
        if not isinstance(text, str) or not is_name(text):
            continue
        if path[0] == "output" and text in _ROLES:
            continue
        if path[-1] == "adapter" and text in names.steps:
            names.problems.add(
                node.position,
                f"the output of the step `{text}` is a whole model, no adapter: write "
                f"`source_ft: {text}`, and let the step merge its adapter",
            )
            continue
        if names.take(text, node.position, taken) and text in models:
            node.value = node.written = models[text].text


def _references(root: Node) -> list[KeyPath]:
    found: list[KeyPath] = [(key,) for key in _MODELS if root.get(key) is not None]
    output, sources = root.get("output"), root.get("sources")
    if output is not None:
        found += [("output", key) for key in _FILES if output.get(key) is not None]
    if sources is not None and isinstance(sources.value, list):
        for index, source in enumerate(sources.value):
            keys = (key for key in _OF_SOURCES if source.get(key) is not None)
            found += [("sources", index, key) for key in keys]
    return [each for path in found for each in _parts(root, path)]


def _parts(root: Node, path: KeyPath) -> list[KeyPath]:
    """Where a model is named; of an adapter also where its base is, of a stack its parts."""
    stack = root.at(path).get("stack")
    if stack is not None and isinstance(stack.value, list):
        slabs = [
            (*path, "stack", index, "model")
            for index, slab in enumerate(stack.value)
            if slab.get("model") is not None
        ]
        return [each for slab in slabs for each in _parts(root, slab)]
    keys = (key for key in _ADAPTER if root.at(path).get(key) is not None)
    return [(*path, key) for key in keys] or [path]


def placed(plan: Plan, outputs: Mapping[str, ModelReference]) -> Plan:
    """The plan with the outputs of steps in the place of their ids."""

    def there(reference: ModelReference) -> ModelReference:
        if reference.adapts is not None:
            return replace(reference, adapts=there(reference.adapts))
        if reference.stack:
            slabs = (replace(slab, model=there(slab.model)) for slab in reference.stack)
            return ModelReference.of_stack(slabs, reference.position)
        step = outputs.get(reference.text) if reference.repo is not None else None
        return reference if step is None else replace(step, position=reference.position)

    def donor(chosen: Role | ModelReference) -> Role | ModelReference:
        return there(chosen) if isinstance(chosen, ModelReference) else chosen

    output = plan.output
    return replace(
        plan,
        target=there(plan.target),
        sources=tuple(
            replace(
                source,
                source_base=there(source.source_base),
                source_ft=there(source.source_ft),
            )
            for source in plan.sources
        ),
        output=replace(
            output,
            tokenizer=donor(output.tokenizer),
            config=donor(output.config),
            generation_config=donor(output.generation_config),
        ),
    )
