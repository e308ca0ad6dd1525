"""Reading a chain: a file or a text becomes a `Chain`, or one `PlanError` that tells all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mergeengine.chain.build import build_steps
from mergeengine.chain.chain import Chain
from mergeengine.chain.order import in_order
from mergeengine.chain.schema import ChainKeys
from mergeengine.chain.schemes import plain_steps
from mergeengine.chain.variables import Written, write_out
from mergeengine.plan.document import Node, place_in, read_yaml
from mergeengine.plan.files import text_of
from mergeengine.plan.overrides import apply_override
from mergeengine.plan.plan import Substituted
from mergeengine.plan.problems import Problems
from mergeengine.plan.validate import check_form
from mergeengine.values.positions import Position
from mergeengine.values.references import local_path, parse_reference


def load_chain(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Chain:
    """Read and check the chain file `path`; `overrides` are ``--set`` texts.

    Opens no model and asks no hub. PlanError with every problem found, each as
    ``file:line:column: message``; the file is named as `path` names it.
    """
    return parse_chain(text_of(path), path, overrides)


def parse_chain(text: str, file: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Chain:
    """As `load_chain`, for a text that stands in `file`, which need not exist."""
    shown, text = os.fspath(file), text.removeprefix("\ufeff")
    problems = Problems()
    problems.open(shown, text)
    root = read_yaml(text, place_in(shown), problems)
    if root is None or not isinstance(root.value, dict):
        place = Position(shown, 1, 1) if root is None else root.position
        found = "nothing" if root is None else root.described
        problems.add(place, f"expected a chain: lines of `key: value`, found {found}")
        raise problems.error()
    return chain_of(root, file, overrides, problems)


def chain_of(
    root: Node, file: str | os.PathLike[str], overrides: Sequence[str], problems: Problems
) -> Chain:
    """The chain that a tree is, whatever it was made of."""
    assert isinstance(root.value, dict)
    shown = os.fspath(file)
    if root.get("version") is None:
        problems.add(root.position, "`version` is missing: a chain begins with `version: 1`")
        root.value["version"] = Node(root.position, 1)
    for override in overrides:
        apply_override(root, override, problems)
    declared = root.get("vars")
    known = len(problems.found)
    written = write_out(root, os.environ, problems)
    if len(problems.found) > known:  # what is written nobody knows now
        raise problems.error()
    keys = _checked(root, problems)
    _stop(problems)
    assert keys is not None
    steps = root.at(("steps",))
    assert isinstance(steps.value, list)
    steps.value = plain_steps(steps.value, keys.steps, problems)
    _stop(problems)
    keys = _checked(root, problems)
    _stop(problems)
    assert keys is not None
    path = Path(file)
    folder = path.parent
    models = {
        name: parse_reference(text, folder, root.at(("models", name)).position)
        for name, text in keys.models.items()
    }
    chain = Chain(
        name=keys.name or path.stem,
        file=path,
        output_root=local_path(keys.output_root, folder),
        models=models,
        steps=(),
        document=root.plain,
        substituted=Substituted(
            dict(sorted(written.variables.items())), dict(sorted(written.environment.items()))
        ),
    )
    built = build_steps(chain, keys, root, shown, problems)
    _stop(problems)
    chain = in_order(replace(chain, steps=built), keys.results, root, problems)
    _stop(problems)
    warnings = (*_unused(written, declared), *_unused_models(chain, root))
    return replace(chain, warnings=warnings)


def _checked(root: Node, problems: Problems) -> ChainKeys | None:
    """The form of everything but the plans, which are checked one by one."""
    steps = root.get("steps")
    inside: list[tuple[Node, str, Node]] = []
    if steps is not None and isinstance(steps.value, list):
        for step in steps.value:
            for holder in (step, *(step.get(name) for name in ("iterative", "direct", "matrix"))):
                plan = holder.get("plan") if holder is not None else None
                if holder is not None and plan is not None and isinstance(plan.value, dict):
                    assert isinstance(holder.value, dict)
                    holder.value["plan"] = Node(plan.position, "a plan")
                    inside.append((holder, "plan", plan))
    try:
        return check_form(root, ChainKeys, problems)
    finally:
        for holder, key, plan in inside:
            assert isinstance(holder.value, dict)
            holder.value[key] = plan


def _stop(problems: Problems) -> None:
    if problems.found:
        raise problems.error()


def _unused(written: Written, declared: Node | None) -> Iterator[str]:
    for name in written.unused:
        assert declared is not None
        yield f"{declared.keys[name]}: the variable `{name}` is never used"


def _unused_models(chain: Chain, root: Node) -> Iterator[str]:
    used = {name for step in chain.steps for name in step.models}
    for name in chain.models:
        if name not in used:
            at = root.at(("models",)).keys[name]
            yield f"{at}: no step uses the model `{name}`"
