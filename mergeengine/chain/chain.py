"""The frozen result of reading a chain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeengine.plan.plan import Plan, Substituted
from mergeengine.values.positions import Position
from mergeengine.values.references import ModelReference


@dataclass(frozen=True, slots=True)
class Merge:
    """A plan. Its references to steps have the step's id as text, and its output's path."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Command:
    """A program that makes a model. ``arguments`` and the values of ``env`` are templates.

    ``files`` are what it reads besides models, as written; ``pass_env`` the variables of the
    environment that it is given, which are no part of what it is.
    """

    arguments: tuple[str, ...]
    files: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    pass_env: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class External:
    """Something that is done elsewhere; ``about`` says what, to the person who does it."""

    about: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model measured by lm-evaluation-harness on ``tasks``, whose files lie in ``task_folder``.

    ``arguments`` are further ones of the harness, as they are.
    """

    model: str
    tasks: tuple[str, ...]
    task_folder: str | None = None
    arguments: tuple[str, ...] = ()


Work = Merge | Command | External | Evaluation


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what is done, where its output goes, and what it takes.

    ``uses`` are the steps whose outputs it takes, ``models`` the chain's models that a command or
    an evaluation takes; a plan has its own. With ``keep`` false the output is not kept any longer
    than a step needs it.
    """

    id: str
    work: Work
    output: Path
    keep: bool
    uses: tuple[str, ...]
    models: tuple[str, ...]
    position: Position = field(compare=False)

    @property
    def kind(self) -> str:
        """``merge``, ``command``, ``external`` or ``evaluation``."""
        return type(self.work).__name__.lower()


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain that has been read and checked; nothing in it has been looked up yet.

    ``steps`` are in an order in which they can be done. ``document`` is the chain as plain data,
    with its variables, and with `foreach` and the schemes written out as plain steps.
    """

    name: str
    file: Path
    output_root: Path
    models: Mapping[str, ModelReference]
    steps: tuple[Step, ...]
    document: dict[str, Any]
    substituted: Substituted = field(default_factory=Substituted)
    warnings: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where commands run, and relative paths start."""
        return self.file.parent.absolute()

    def __getitem__(self, step: str) -> Step:
        return next(each for each in self.steps if each.id == step)

    def users(self, step: str) -> tuple[Step, ...]:
        """The steps that take the output of that one."""
        return tuple(each for each in self.steps if step in each.uses)

    def needed_for(self, *steps: str) -> set[str]:
        """Those steps and all that they need, however far."""
        return self._reached(steps, lambda each: self[each].uses)

    def following(self, *steps: str) -> set[str]:
        """Those steps and all that need them, however far."""
        return self._reached(steps, lambda each: [user.id for user in self.users(each)])

    def _reached(self, steps: Any, onward: Any) -> set[str]:
        found: set[str] = set()
        waiting = list(steps)
        while waiting:
            step = waiting.pop()
            if step not in found:
                found.add(step)
                waiting += onward(step)
        return found

    def fused(self) -> Iterator[Step]:
        """The merges that are never written, since merges alone use them, and not with adapters."""
        adapted = {
            each.adapts.text
            for step in self.steps
            if isinstance(step.work, Merge)
            for reference in step.work.plan.merged
            for each in reference.each()
            if each.adapts is not None
        }
        for step in self.steps:
            users = self.users(step.id)
            if (
                not step.keep
                and step.id not in adapted
                and isinstance(step.work, Merge)
                and users
                and all(isinstance(user.work, Merge) for user in users)
            ):
                yield step
