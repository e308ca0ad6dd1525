"""``mergeengine run`` and ``plan`` of a chain."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeengine.cli.console import emit, emit_json, say, tell_findings, warn
from mergeengine.cli.progress import Progress
from mergeengine.units import format_size

if TYPE_CHECKING:
    from mergeengine.chain.chain import Chain, Step
    from mergeengine.workflow.chain.results import ChainResult, Foreseen, Options, StepResult

_PLANS_ONLY = {"output": "--output", "sweeps": "--sweep", "report": "--report"}
_CHAINS_ONLY = {
    "steps": "--step",
    "start": "--from",
    "keep_going": "--keep-going",
    "allow_commands": "--allow-commands",
}


def check_options(given: Mapping[str, Any], chain: bool, *allowed: str) -> None:
    """Options of plans do not go with a chain, but those ``allowed``, and those of chains not with
    a plan."""
    for name, option in (_PLANS_ONLY if chain else _CHAINS_ONLY).items():
        if given.get(name) and name not in allowed:
            what = ("a chain", "plans") if chain else ("a plan", "chains")
            raise click.ClickException(f"{option} is an option of {what[1]}; this is {what[0]}")


def options_of(given: Mapping[str, Any]) -> "Options":
    """What the command line says of a run."""
    from mergeengine.workflow.chain.results import Options
    from mergeengine.workflow.settings import Settings

    machine = ("device", "memory", "workers", "device_memory", "offline")
    return Options(
        steps=tuple(given.get("steps", ())),
        start=given.get("start"),
        force=given["force"],
        keep_going=given.get("keep_going", False),
        allow_commands=given.get("allow_commands", False),
        locked=given["locked"],
        settings=Settings(**{name: given[name] for name in machine}),
    )


def _loaded(file: Path, given: Mapping[str, Any]) -> "Chain":
    """The chain; of several mergekit configurations `--output` says where the result goes."""
    from mergeengine.workflow.reading import is_configs, load_chain

    configs = is_configs(file)
    check_options(given, True, *(["output"] if configs else []))
    return load_chain(file, given["overrides"], given.get("output") if configs else None)


def run(file: Path, given: Mapping[str, Any]) -> None:
    """Bring a chain up to date, and tell what was done: the table on stdout, the rest on stderr."""
    from mergeengine.workflow.chain.results import Listener
    from mergeengine.workflow.chain.run import run_chain

    chain = _loaded(file, given)
    tell_findings((), chain.warnings)
    if given["dry_run"]:
        tell_foreseen(chain, options_of(given), given["style"])
        return
    with Progress() as progress:
        listener = Listener(
            begin=lambda step, reason: say(f"{step.id}: {reason}"),
            line=lambda step, text: say(f"{step} | {text}"),
            warn=warn,
            progress=progress.tell,
        )
        result = run_chain(chain, options_of(given), listener)
    _tell(result, given["style"])
    if result.error is not None:
        raise result.error


def plan(file: Path, given: Mapping[str, Any], expand: bool) -> None:
    """Show what a run would do with each step, or the chain as plain steps."""
    chain = _loaded(file, given)
    if expand:
        emit(expanded(chain).rstrip())
        return
    tell_findings((), chain.warnings)
    tell_foreseen(chain, options_of(given), given["style"])


def expanded(chain: "Chain") -> str:
    """The chain as YAML, with `foreach`, schemes and variables written out."""
    import yaml

    from mergeengine.plan.variables import escaped

    return str(
        yaml.safe_dump(escaped(chain.document), sort_keys=False, allow_unicode=True, width=100)
    )


def tell_foreseen(chain: "Chain", options: "Options", style: str) -> None:
    from mergeengine.workflow.chain.run import foresee_chain

    found = foresee_chain(chain, options)
    if style == "json":
        emit_json({"chain": chain.name, "steps": [each.document() for each in found]})
        return
    _emit_columns(_foreseen_rows(found))


def _foreseen_rows(found: "Iterable[Foreseen]") -> Iterator[tuple[str, ...]]:
    for each in found:
        first, *more = each.reason.splitlines() or [""]
        size = format_size(each.bytes) if each.bytes else ""
        yield each.step.id, each.step.kind, each.state, size, first
        for line in more:
            yield "", "", "", "", line
        for text in _measured(each.measured):
            yield "", "", "", "", text


def _tell(result: "ChainResult", style: str) -> None:
    if style == "json":
        emit_json({"steps": [each.document() for each in result.steps]})
        return
    rows = [row for each in result.steps for row in _rows(each)]
    _emit_columns(rows)
    made = [each for each in result.steps if each.outcome == "made"]
    others = sum(each.outcome in ("reused", "removed", "fused") for each in result.steps)
    seconds = sum(each.seconds for each in made)
    if result.error is None:
        say(
            f"done: {len(made)} steps made in {seconds:.3g} s, {others} reused or not needed"
            if made
            else "up to date: every step is what it should be"
        )


def _rows(each: "StepResult") -> Iterator[tuple[str, ...]]:
    outcome = f"{each.outcome}, removed" if each.removed else each.outcome
    size = format_size(each.bytes) if each.bytes else ""
    time = f"{each.seconds:.3g} s" if each.outcome == "made" else ""
    reason = (each.reason.splitlines() or [""])[0]
    yield each.step.id, each.step.kind, outcome, size, time, reason
    for text in _measured(each.measured):
        yield "", "", "", "", "", text


def _measured(measured: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    for task, metrics in measured.items():
        for name, value in metrics.items():
            yield f"{task}: {name} {value:.4g}"


def _emit_columns(rows: Iterable[tuple[str, ...]]) -> None:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        emit("  ".join(cells).rstrip())


def step_of(chain: "Chain", name: str) -> "Step":
    """The step of that id; a usage error where there is none."""
    from mergeengine.values.nearest import did_you_mean

    ids = [step.id for step in chain.steps]
    if name not in ids:
        raise click.ClickException(f"there is no step `{name}`{did_you_mean(name, ids)}")
    return chain[name]
