"""The order in which steps can be done; steps that need themselves, and those nobody needs."""

from __future__ import annotations

from dataclasses import replace

from mergeengine.chain.chain import Chain, Step
from mergeengine.plan.document import Node
from mergeengine.plan.problems import Problems
from mergeengine.values.nearest import did_you_mean


def in_order(chain: Chain, results: list[str] | None, root: Node, problems: Problems) -> Chain:
    """The chain with each step after those it uses, else as written. Mistakes join `problems`."""
    waiting = {step.id: step for step in chain.steps}
    ordered: list[Step] = []
    while waiting:
        ready = next(
            (s for s in waiting.values() if not any(used in waiting for used in s.uses)), None
        )
        if ready is None:
            circle = _circle(waiting)
            message = f"the step needs itself: {' → '.join((*circle, circle[0]))}"
            problems.add(waiting[circle[0]].position, message)
            return chain
        ordered.append(waiting.pop(ready.id))
    chain = replace(chain, steps=tuple(ordered))
    _check_used(chain, results, root, problems)
    return chain


def _circle(waiting: dict[str, Step]) -> list[str]:
    """Steps that need each other, each the next, from the first in the file on."""
    way: list[str] = []
    step = next(iter(waiting))
    while step not in way:
        way.append(step)
        step = next(used for used in waiting[step].uses if used in waiting)
    found = way[way.index(step) :]
    first = min(found, key=lambda each: list(waiting).index(each))
    place = found.index(first)
    return found[place:] + found[:place]


def _check_used(chain: Chain, results: list[str] | None, root: Node, problems: Problems) -> None:
    """A step whose output nobody wants is a slip of the pen."""
    ids = [step.id for step in chain.steps]
    for index, name in enumerate(results or ()):
        if name not in ids:
            at = root.at(("results", index)).position
            problems.add(at, f"`results`: there is no step `{name}`{did_you_mean(name, ids)}")
    if problems.found:
        return
    needed = None if results is None else chain.needed_for(*results)
    for step in chain.steps:
        if needed is not None and step.id not in needed:
            message = f"the step `{step.id}` is never used: none of `results` needs it"
            problems.add(step.position, message)
        elif not step.keep and not chain.users(step.id) and step.id not in (results or ()):
            message = (
                f"the step `{step.id}` is never used: no step takes its output, which "
                "`keep: false` would remove"
            )
            problems.add(step.position, message)
