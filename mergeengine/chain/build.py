"""From a chain's checked keys to its steps."""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from mergeengine.chain.chain import Chain, Command, Evaluation, External, Merge, Step, Work
from mergeengine.chain.names import Names, Taken, is_name, placed, take_in_plan
from mergeengine.chain.schema import ChainKeys, EvaluateKeys, RunKeys, StepKeys
from mergeengine.chain.templates import WORDS, names_in
from mergeengine.plan.build import build
from mergeengine.plan.document import Node
from mergeengine.plan.include import lay_under
from mergeengine.plan.plan import Plan, Substituted
from mergeengine.plan.problems import Problems
from mergeengine.plan.validate import validate
from mergeengine.plan.variables import escaped, substitute
from mergeengine.values.excerpts import excerpt
from mergeengine.values.references import ModelReference, check_printable, local_path

_KINDS = ("plan", "run", "external", "evaluate")


def build_steps(
    chain: Chain, keys: ChainKeys, root: Node, shown: str, problems: Problems
) -> tuple[Step, ...]:
    """The steps of `keys`, in the order in which they are written. Mistakes join `problems`."""
    nodes = root.at(("steps",)).value
    assert isinstance(nodes, list)
    _check_ids(chain, keys, nodes, problems)
    if problems.found:
        return ()
    makes = {str(step.id): step.evaluate is None for step in keys.steps}
    builder = _Builder(chain, shown, Names(makes, chain.models, problems), problems)
    made = [
        each
        for step, node in zip(keys.steps, nodes, strict=True)
        if (each := builder.step(step, node)) is not None
    ]
    _check_outputs(chain, made, problems)
    outputs = {step.id: ModelReference(step.id, path=step.output) for step in made}
    return tuple(
        replace(step, work=Merge(placed(step.work.plan, outputs)))
        if isinstance(step.work, Merge)
        else step
        for step in made
    )


def _check_ids(chain: Chain, keys: ChainKeys, nodes: list[Node], problems: Problems) -> None:
    seen: dict[str, Node] = {}
    for step, node in zip(keys.steps, nodes, strict=True):
        if step.id is None:
            problems.add(node.position, "`id` is missing: the name of the step")
            continue
        at = node.at(("id",)).position
        if step.id in seen:
            line = seen[step.id].at(("id",)).position.line
            problems.add(at, f"two steps have the id `{step.id}`, the first in line {line}")
        elif step.id in chain.models:
            problems.add(at, f"`{step.id}` is one of `models` already; choose another id")
        seen.setdefault(step.id, node)


def _check_outputs(chain: Chain, steps: list[Step], problems: Problems) -> None:
    """Outputs must not lie in one another, and not around the chain."""
    real = [(step, Path(os.path.realpath(step.output))) for step in steps]
    here = Path(os.path.realpath(chain.folder))
    for number, (step, path) in enumerate(real):
        if here.is_relative_to(path):
            problems.add(step.position, f"the output of `{step.id}` is a folder the chain lies in")
        for other, place in real[:number]:
            if path == place:
                message = f"the steps `{other.id}` and `{step.id}` have the same output"
                problems.add(step.position, message)
            elif path.is_relative_to(place) or place.is_relative_to(path):
                message = f"the outputs of `{other.id}` and `{step.id}` lie in one another"
                problems.add(step.position, message)


class _Builder:
    def __init__(self, chain: Chain, shown: str, names: Names, problems: Problems) -> None:
        self.chain = chain
        self.shown = shown
        self.names = names
        self.problems = problems

    def step(self, keys: StepKeys, node: Node) -> Step | None:
        """The step; None, and why, where it is none."""
        assert isinstance(node.value, dict)
        kinds = [kind for kind in _KINDS if kind in node.value]
        if len(kinds) != 1:
            message = f"step `{keys.id}`: expected one of {', '.join(f'`{k}`' for k in _KINDS)}"
            if kinds:
                message += f", found {' and '.join(f'`{kind}`' for kind in kinds)}"
            self.problems.add(node.position, message)
            return None
        taken = Taken()
        path = keys.output.path if keys.output is not None else None
        work: Work
        if "plan" in node.value:
            plan = self._plan(keys, node, taken)
            if plan is None:
                return None
            work = Merge(plan)
            own = plan.output.path
        else:
            own = None if path is None else local_path(path, self.chain.folder)
            work = self._other(keys, node, taken)
            self._check_output(node)
        output = own or self.chain.output_root / str(keys.id)
        if isinstance(work, Merge):
            work = Merge(replace(work.plan, output=replace(work.plan.output, path=output)))
        return Step(
            id=str(keys.id),
            work=work,
            output=output,
            keep=keys.keep,
            uses=tuple(taken.steps),
            models=tuple(taken.models),
            position=node.at(("id",)).position,
        )

    def _check_output(self, node: Node) -> None:
        output = node.get("output")
        for key, at in (output.keys if output is not None else {}).items():
            if key != "path":
                self.problems.add(at, f"`output.{key}` belongs to plans; here only `path` stands")

    def _other(self, keys: StepKeys, node: Node, taken: Taken) -> Work:
        if keys.run is not None:
            return self._command(keys.run, node, taken)
        if keys.evaluate is not None:
            return self._evaluation(keys.evaluate, node, taken)
        assert keys.external is not None
        uses = node.at(("external", "uses"))
        for index, name in enumerate(keys.external.uses):
            self.names.take(name, uses.at((index,)).position, taken)
        if not keys.keep:
            at = node.keys["keep"]
            self.problems.add(at, "what is done elsewhere is never removed: `keep` must be true")
        return External(keys.external.about)

    def _command(self, keys: RunKeys, node: Node, taken: Taken) -> Command:
        texts = [(("run", "command", index), text) for index, text in enumerate(keys.command)] + [
            (("run", "env", name), text) for name, text in keys.env.items()
        ]
        for path, text in texts:
            for name in names_in(text):
                if name not in WORDS:
                    self.names.take(name, node.at(path).position, taken)
        return Command(tuple(keys.command), tuple(keys.files), dict(keys.env), tuple(keys.pass_env))

    def _evaluation(self, keys: EvaluateKeys, node: Node, taken: Taken) -> Evaluation:
        at = node.at(("evaluate", "model")).position
        if is_name(keys.model):
            self.names.take(keys.model, at, taken)
        else:
            taken.models.append(keys.model)
        return Evaluation(keys.model, tuple(keys.tasks), keys.task_folder, tuple(keys.arguments))

    def _plan(self, keys: StepKeys, node: Node, taken: Taken) -> Plan | None:
        """The plan of a step, as if it stood in a file beside the chain."""
        written = node.at(("plan",))
        root = self._root(keys, node, written)
        if root is None:
            return None
        known = len(self.problems.found)
        includes = lay_under(root, self.chain.file, self.shown, self.problems)
        if len(self.problems.found) > known:
            return None
        found = substitute(root, os.environ, self.problems)
        if len(self.problems.found) > known:
            return None
        take_in_plan(root, self.names, self.chain.models, taken)
        checked = validate(root, self.problems)
        if checked is None or len(self.problems.found) > known:
            return None
        substituted = Substituted(found.variables, found.environment, includes)
        return build(checked, root, "", self.chain.file, substituted, ())

    def _root(self, keys: StepKeys, node: Node, written: Node) -> Node | None:
        """The tree of the plan: what the step says of its output, and its name, laid into it."""
        if isinstance(written.value, str):
            try:
                check_printable(written.value)
            except ValueError as error:
                self.problems.add(written.position, f"`plan`: {error}")
                return None
            root = Node(written.position, {"include": Node(written.position, written.value)})
            root.keys = {"include": written.position}
        elif isinstance(written.value, dict):
            root = deepcopy(written)
            for _, each in root.walk():  # the chain's variables are in place already
                if isinstance(each.value, str):
                    each.value = escaped(each.value)
        else:
            message = f"`plan`: expected a plan or the path of one, found {written.described}"
            self.problems.add(written.position, message)
            return None
        assert isinstance(root.value, dict)
        for key, value in (("version", 1), ("name", keys.id)):
            if key == "version" or key not in root.value:
                root.value[key] = Node(written.position, value)
                root.keys[key] = written.position
        output = node.get("output")
        if output is not None:
            assert isinstance(output.value, dict)
            own = root.value.setdefault("output", Node(output.position, {}))
            if not isinstance(own.value, dict):
                message = f"`output`: expected a mapping of keys to values, found {own.described}"
                self.problems.add(own.position, message)
                return None
            root.keys.setdefault("output", output.position)
            for key in output.value:
                if key in own.value:
                    message = f"`output.{excerpt(key)}` is given twice: for the step and its plan"
                    self.problems.add(output.keys[key], message)
                own.value[key] = deepcopy(output.value[key])
                own.keys[key] = output.keys[key]
        return root
