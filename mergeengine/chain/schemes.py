"""The papers' schemes, written out as plain steps.

Lin et al. 2025, "Efficient Model Development through Fine-tuning Transfer": ``iterative`` is its
Algorithm 1 (iterative recycling-then-finetuning), ``direct`` takes each delta from a plain
fine-tuning of the version before, and ``matrix`` adds every delta to every other version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy

from mergeengine.chain.schema import IterativeKeys, MatrixKeys, StepKeys
from mergeengine.chain.templates import INPUT, names_in, renamed
from mergeengine.plan.document import Node
from mergeengine.plan.problems import Problems
from mergeengine.values.positions import Position

_GIVEN = ("target", "source_base", "source_ft", "base", "sources", "version")


def plain_steps(nodes: list[Node], keys: list[StepKeys], problems: Problems) -> list[Node]:
    """The steps with schemes written out; what a scheme makes stands where the scheme does."""
    found: list[Node] = []
    for node, step in zip(nodes, keys, strict=True):
        for name, scheme in (
            ("iterative", step.iterative),
            ("direct", step.direct),
            ("matrix", step.matrix),
        ):
            if scheme is None:
                continue
            assert isinstance(node.value, dict)
            for other in node.value:
                if other != name:
                    message = f"`{other}` cannot stand beside `{name}`, which makes several steps"
                    problems.add(node.keys[other], message)
            writer = _Writer(node.value[name], scheme.prefix, problems)
            if isinstance(scheme, MatrixKeys):
                found += writer.matrix(scheme)
            elif name == "iterative":
                found += writer.iterative(scheme)
            else:
                found += writer.direct(scheme)
            break
        else:
            found.append(node)
    return found


class _Writer:
    """Writes the steps of one scheme, whose mapping is `node`."""

    def __init__(self, node: Node, prefix: str | None, problems: Problems) -> None:
        self.node = node
        self.prefix = f"{prefix}_" if prefix else ""
        self.problems = problems

    def iterative(self, keys: IterativeKeys) -> Iterable[Node]:
        """M*₁ = FT(M₁); then for each next version Mᵢ + (M*ᵢ₋₁ − Mᵢ₋₁), which is fine-tuned."""
        if not self._takes_input():
            return
        before = None
        for index, base in enumerate(keys.bases):
            at = self.node.at(("bases", index)).position
            tuned = f"{self.prefix}{base}_ft"
            start = base
            if before is not None:
                start = f"{self.prefix}{base}_start"
                yield self._merge(at, start, base, *before, keep=keys.keep_starts)
            yield self._finetune(at, tuned, start)
            before = base, tuned

    def direct(self, keys: IterativeKeys) -> Iterable[Node]:
        """FT(Mᵢ₋₁) by itself; then Mᵢ + (FT(Mᵢ₋₁) − Mᵢ₋₁), which is fine-tuned."""
        if not self._takes_input():
            return
        for index, (old, new) in enumerate(zip(keys.bases, keys.bases[1:], strict=False)):
            at = self.node.at(("bases", index + 1)).position
            plain, start = f"{self.prefix}{old}_plain", f"{self.prefix}{new}_direct_start"
            yield self._finetune(at, plain, old)
            yield self._merge(at, start, new, old, plain, keep=keys.keep_starts)
            yield self._finetune(at, f"{self.prefix}{new}_direct_ft", start)

    def matrix(self, keys: MatrixKeys) -> Iterable[Node]:
        """Mⱼ + (FTᵢ − Mᵢ) for every i and j that differ."""
        if len(keys.versions) != len(keys.finetuned):
            message = (
                "`finetuned` names the fine-tune of each of `versions`, in their order: expected "
                f"{len(keys.versions)} entries, found {len(keys.finetuned)}"
            )
            self.problems.add(self.node.at(("finetuned",)).position, message)
            return
        for index, (own, tuned) in enumerate(zip(keys.versions, keys.finetuned, strict=True)):
            at = self.node.at(("finetuned", index)).position
            for version in keys.versions:
                if version != own:
                    name = f"{self.prefix}{tuned}_on_{version}"
                    yield self._merge(at, name, version, own, tuned)

    def _takes_input(self) -> bool:
        command = self.node.at(("finetune", "command"))
        taken = any(
            INPUT in names_in(node.value)
            for _, node in command.walk()
            if isinstance(node.value, str)
        )
        if not taken:
            message = (
                "`finetune.command`: expected `{input}`, the model to fine-tune, in one argument"
            )
            self.problems.add(command.position, message)
        return taken

    def _merge(
        self, at: Position, name: str, target: str, base: str, tuned: str, *, keep: bool = True
    ) -> Node:
        plan = {
            "target": Node(at, target),
            "source_base": Node(at, base),
            "source_ft": Node(at, tuned),
        }
        keys = dict.fromkeys(plan, at)
        further = self.node.get("plan")
        if further is not None and not isinstance(further.value, dict):
            message = f"`plan`: expected further keys of each plan, found {further.described}"
            self.problems.add(further.position, message)
        elif further is not None and isinstance(further.value, dict):
            for key in _GIVEN:
                if key in further.value:
                    message = f"`{key}` cannot be given here: the scheme gives it"
                    self.problems.add(further.keys[key], message)
            plan.update(deepcopy(further.value))
            keys.update(further.keys)
        step = {"id": Node(at, name), "plan": Node(at, plan, keys=keys)}
        if not keep:
            step["keep"] = Node(at, False)
        return _mapping(at, step)

    def _finetune(self, at: Position, name: str, start: str) -> Node:
        run = deepcopy(self.node.at(("finetune",)))
        for _, node in run.walk():
            if isinstance(node.value, str):
                node.value = renamed(node.value, INPUT, start)
        return _mapping(at, {"id": Node(at, name), "run": run})


def _mapping(at: Position, items: Mapping[str, Node]) -> Node:
    return Node(at, dict(items), keys=dict.fromkeys(items, at))
