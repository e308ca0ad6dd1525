"""``mergeengine run``."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeengine.cli import options
from mergeengine.cli.console import emit, emit_json, json_text, open_log, say, tell_findings
from mergeengine.cli.progress import Progress
from mergeengine.errors import OutputError
from mergeengine.units import format_size

if TYPE_CHECKING:
    from mergeengine.workflow.prepare import Prepared
    from mergeengine.workflow.run import RunResult


@click.command("run")
@options.plan_argument
@options.run_options
@options.chain_choice
@click.option("--keep-going", is_flag=True, help="Of a chain: a failure stops only what needs it.")
@click.option(
    "--allow-commands", is_flag=True, help="Of a chain: run its programs. Read them before."
)
@click.option("--dry-run", is_flag=True, help="Only show what would be done, as `plan` does.")
@click.option(
    "--report", type=options.PATH, help="Write seconds, bytes and memory to a file, as JSON."
)
@click.option("--log-file", type=options.PATH, help="Append all messages, with times, to a file.")
@options.format_option
@click.pass_context
def command(
    context: click.Context,
    plan_file: Path,
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
    keep_going: bool,
    allow_commands: bool,
    dry_run: bool,
    report: Path | None,
    log_file: Path | None,
    style: str,
) -> None:
    """Make the output that PLAN asks for, and write a lock of its inputs beside PLAN.

    Nothing is done where the output is up to date. A run that was stopped, by whatever, goes on
    where it was when the same command is given again. Prints the output's path.

    PLAN may be a chain: each of its steps that is out of date is made, and a table of all steps
    printed.
    """
    from mergeengine.cli import chain_run
    from mergeengine.workflow.reading import is_chain

    if is_chain(plan_file):
        if log_file is not None:
            _check_outside("--log-file", log_file, plan_file, ())
            open_log(log_file)
        chain_run.run(plan_file, context.params)
        return
    chain_run.check_options(context.params, chain=False)
    from mergeengine.workflow.run import run
    from mergeengine.workflow.sweep import outputs_of, sweep

    places = outputs_of(plan_file, sweeps, overrides=overrides, output=output)
    for option, file in (("--report", report), ("--log-file", log_file)):
        if file is not None:
            _check_outside(option, file, plan_file, places)
    if log_file is not None:
        open_log(log_file)
    if dry_run:
        if report is not None:
            raise click.ClickException("--report tells of a run: it cannot go with --dry-run")
        from mergeengine.cli.plan import command as plan_command

        shared = {option.name for option in plan_command.params}
        given = {key: value for key, value in context.params.items() if key in shared}
        given |= {"old_file": None, "expand": False}
        context.invoke(plan_command, **given)
        return

    told: dict[Path, tuple[int, int]] = {}  # notes and warnings that were told beforehand

    def tell(prepared: "Prepared") -> None:
        told[prepared.output] = len(prepared.notes), len(prepared.warnings)
        if len(told) == 1:  # those of a sweep's other outputs are alike
            tell_findings(prepared.notes, prepared.warnings)

    with Progress() as progress:
        options_of_both: dict[str, Any] = {
            "overrides": overrides,
            "output": output,
            "device": device,
            "memory": memory,
            "workers": workers,
            "device_memory": device_memory,
            "force": force,
            "locked": locked,
            "offline": offline,
            "progress": progress.tell,
            "on_prepared": tell,
        }
        if sweeps:
            results, document = sweep(plan_file, sweeps, **options_of_both)
            document["outputs"] = [_with_findings(result) for result in results]
        else:
            results = [run(plan_file, **options_of_both)]
            document = _with_findings(results[0])
    for result in results:
        notes, warnings = told[result.output]
        tell_findings(result.notes[notes:], result.warnings[warnings:])
    if report is not None:
        _write_report(report, document)
    say(_summary(document))
    if style == "json":
        emit_json(document)
    else:
        for result in results:
            emit(str(result.output))


def _with_findings(result: "RunResult") -> dict[str, Any]:
    return {**result.report, "notes": list(result.notes), "warnings": list(result.warnings)}


def _summary(report: Mapping[str, Any]) -> str:
    outputs = report.get("outputs", [report])
    made = [output for output in outputs if output["made"]]
    if not made:
        return "up to date: the plan and its inputs are those that made it"
    what = ", ".join(f"{count} {kind}" for kind, count in made[0]["tensors"].items())
    if "outputs" in report:
        what = f"{len(made)} output{'s' if len(made) > 1 else ''} made" + (
            f", {len(outputs) - len(made)} up to date" if len(made) < len(outputs) else ""
        )
    errors = [output["precision"]["error"] for output in made if output["precision"]]
    known = [error for error in errors if error is not None]
    size, rate = report["bytes"], report["gigabytes_per_second"]
    return (
        f"done in {report['seconds']['total']:.3g} s on {report['device']}: {what}; "
        f"{format_size(size['read'])} read, {format_size(size['written'])} written"
        + (f", {rate:.2g} GB/s" if rate else "")
        + (f"; lost to rounding: {max(known):.2%} of what was added (a sample)" if known else "")
    )


def _check_outside(option: str, file: Path, plan_file: Path, outputs: Sequence[Path]) -> None:
    """Reports and logs must not change an output, nor stand where the plan stands."""
    place = file.resolve()
    problem = None
    if any(place.is_relative_to(output.resolve()) for output in outputs):
        problem = "this is inside the output; write it elsewhere"
    elif place == plan_file.resolve():
        problem = "this is the plan; write it elsewhere"
    elif place.is_dir():
        problem = "this is a folder; give the name of a file"
    elif not place.parent.is_dir():
        problem = f"there is no folder {place.parent}"
    elif not os.access(place.parent, os.W_OK):
        problem = f"the folder {place.parent} cannot be written to"
    elif place.exists() and not _is_ours(option, place):
        problem = "there is a file of another kind; choose another name"
    if problem is not None:
        raise click.ClickException(f"{option} {file}: {problem}")


def _is_ours(option: str, place: Path) -> bool:
    """Whether a file is a report, or a log, of an earlier run (or empty)."""
    try:
        with place.open(encoding="utf-8") as file:
            beginning = file.read(4096)
    except (OSError, ValueError):
        return False
    if option == "--log-file":
        return not beginning or re.match(r"\d{4}-\d\d-\d\d ", beginning) is not None
    return not beginning or (beginning.startswith("{") and '"identity": "sha256:' in beginning)


def _write_report(path: Path, document: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(json_text(document), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: the report cannot be written: {error.strerror}") from error
