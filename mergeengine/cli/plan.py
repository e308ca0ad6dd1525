"""``mergeengine plan``, which is also ``run --dry-run``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergeengine.cli import options
from mergeengine.cli.console import emit, emit_json, emit_table, tell_findings
from mergeengine.units import format_binary_size, format_size

if TYPE_CHECKING:
    from mergeengine.compiler.schedule import Schedule
    from mergeengine.plan import Plan
    from mergeengine.workflow.produce import Bounds
    from mergeengine.workflow.settings import Settings
    from mergeengine.workflow.status import Status, SweepStatus

_DECISIONS = {
    "nothing": "up to date",
    "make": "would be made",
    "replace": "would be replaced",
    "refuse": "would be refused",
}


@click.command("plan")
@options.plan_argument
@click.option(
    "--diff",
    "old_file",
    metavar="OLD",
    type=options.PATH,
    help="Show what PLAN changes in the output of the plan OLD.",
)
@click.option("--expand", is_flag=True, help="Of a chain: print it as plain steps.")
@options.run_options
@options.chain_choice
@options.format_option
@click.pass_context
def command(
    context: click.Context,
    plan_file: Path,
    old_file: Path | None,
    expand: bool,
    device: str,
    memory: int | None,
    device_memory: int | None,
    workers: int | None,
    output: Path | None,
    overrides: tuple[str, ...],
    sweeps: tuple[str, ...],
    force: bool,
    locked: bool,
    offline: bool,
    steps: tuple[str, ...],
    start: str | None,
    style: str,
) -> None:
    """Show what `run` with these options would do, from the headers of the models alone.

    What does not fit this machine is told and is no error here. Of a chain, the state of each step.
    """
    from mergeengine.cli import chain_run
    from mergeengine.workflow.reading import is_chain

    if is_chain(plan_file):
        if old_file is not None:
            raise click.ClickException("--diff compares two plans; this is a chain")
        chain_run.plan(plan_file, context.params, expand)
        return
    chain_run.check_options(context.params, chain=False)
    if expand:
        raise click.ClickException("--expand is an option of chains; this is a plan")
    from mergeengine.workflow.reading import load_plan
    from mergeengine.workflow.settings import Settings
    from mergeengine.workflow.status import foresee, foresee_sweep

    settings = Settings(
        device=device,
        memory=memory,
        workers=workers,
        device_memory=device_memory,
        offline=offline,
    )
    if old_file is not None:
        if sweeps:
            raise click.ClickException("--diff compares two plans: it cannot go with --sweep")
        _tell_difference(load_plan(old_file), load_plan(plan_file, overrides), settings, style)
        return
    if not sweeps:
        status = foresee(
            load_plan(plan_file, overrides), settings, output=output, locked=locked, force=force
        )
        tell_findings(status.prepared.notes, status.prepared.warnings)
        if style == "json":
            emit_json(status.document())
        else:
            emit_table(_lines(plan_file, status))
        return
    foreseen = foresee_sweep(
        plan_file, sweeps, settings, overrides=overrides, output=output, locked=locked, force=force
    )
    first = foreseen.outputs[0].prepared
    tell_findings(first.notes, first.warnings)
    if style == "json":
        emit_json(foreseen.document())
    else:
        emit_table(_sweep_lines(plan_file, foreseen))


def _tell_difference(old: "Plan", new: "Plan", settings: "Settings", style: str) -> None:
    from mergeengine.analysis.difference import Side, difference
    from mergeengine.analysis.explain import explain
    from mergeengine.output.lock import PlanLock, lock_path, read_lock
    from mergeengine.workflow.prepare import bind_models, resolve

    sides = []
    for plan in (old, new):
        models, pins = resolve(plan, settings)
        # What the old plan's inputs were when they were locked; what the new one would read now.
        lock = (read_lock(lock_path(plan.file)) if plan is old else None) or PlanLock()
        roles = {}
        for role, model in models.roles():
            text = model.reference.text
            content = lock.models.get(text, pins.models[text])
            roles[f"mask {text}" if role == "mask" else role] = text, content
        for text, now in pins.substituted.get("tokens", {}).items():
            ids = {token: f"{number}" for token, number in now.items()}
            ids |= {t: f"{n}" for t, n in lock.tokens(text).items() if t in now}
            for token, number in ids.items():
                roles[f"token {token} of {text}"] = number, number
        sides.append(Side(plan, roles, explain(plan, bind_models(plan, models).binding)))
    found = difference(*sides)
    if style == "json":
        emit_json(
            {
                "settings": list(found.settings),
                "changes": [
                    {"tensors": list(each.names), "what": list(each.lines)}
                    for each in found.changes
                ],
                "unchanged": found.same,
                "inputs_changed": found.inputs_changed,
            }
        )
        return
    for line in found.settings:
        emit(line)
    for each in found.changes:
        emit_table(each.labels)
        for line in each.lines:
            emit(f"  {line}")
    changed = sum(len(each.names) for each in found.changes)
    of = ", of inputs that have changed" if found.inputs_changed else ""
    emit(f"{changed} tensors are made otherwise, {found.same} as before{of}")


def _sweep_lines(plan_file: Path, sweep: "SweepStatus") -> Iterator[tuple[str, str]]:
    yield "plan", f"{sweep.outputs[0].prepared.plan.name} ({plan_file})"
    for model in sweep.outputs[0].models:
        yield model.role, model.reference
    for status in sweep.outputs:
        yield "output", str(status.prepared.output)
        yield "", f"{_DECISIONS[status.decision]}: {status.reason}"
    if sweep.schedule is not None:
        yield "read", f"{format_size(sweep.schedule.read_bytes)}, once"
        yield from _remote_lines(sweep.schedule)
        yield "write", format_size(sweep.schedule.write_bytes)
        yield from _memory_lines(sweep.memory, sweep.outputs[0].allowed_bytes)
    for shortage in sweep.shortages:
        yield "does not fit", shortage


def _lines(plan_file: Path, status: "Status") -> Iterator[tuple[str, str]]:
    prepared = status.prepared
    schedule = prepared.schedule
    counts = prepared.binding.counts()
    shards = len(prepared.layout.shards)
    yield "plan", f"{prepared.plan.name} ({plan_file})"
    for model in status.models:
        yield model.role, model.reference
    yield "output", str(prepared.output)
    yield "", f"{_DECISIONS[status.decision]}: {status.reason}"
    if status.unfinished:
        yield "", f"a stopped run left {status.unfinished:.0%} of it: a run goes on from there"
    yield (
        "tensors",
        f"{sum(counts.values())}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()),
    )
    yield "read", format_size(schedule.read_bytes)
    yield (
        "write",
        f"{format_size(schedule.write_bytes)} in {shards} file{'s' if shards > 1 else ''}",
    )
    yield from _remote_lines(schedule)
    yield "download", format_size(status.download_bytes) if status.download_bytes else "nothing"
    yield "free disk", format_size(status.free_bytes)
    yield from _memory_lines(status.memory, status.allowed_bytes)
    for shortage in status.shortages:
        yield "does not fit", shortage


def _remote_lines(schedule: "Schedule") -> Iterator[tuple[str, str]]:
    for number, (reference, size) in enumerate(schedule.remote_bytes().items()):
        yield "" if number else "transfer", f"{format_size(size)} of {reference}, not stored"


def _memory_lines(memory: "Bounds", allowed: int) -> Iterator[tuple[str, str]]:
    yield "memory", _bound(memory.projected_bytes, allowed)
    if memory.device_bytes is not None:
        yield "on a device", _bound(memory.device_bytes, memory.device_allowed_bytes or 0)
    yield "workers", str(memory.workers)


def _bound(projected: int, allowed: int) -> str:
    return f"{format_binary_size(projected)} projected, {format_binary_size(allowed)} allowed"
