"""``mergeengine run``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mergeengine.cli import options
from mergeengine.cli.console import emit, emit_json, json_text, open_log, say, tell_findings
from mergeengine.cli.progress import Progress
from mergeengine.errors import OutputError
from mergeengine.units import format_size


@click.command("run")
@options.plan_argument
@click.option(
    "--device", default="auto", help="cpu, cuda or cuda:N  [default: the accelerator, if any]"
)
@options.memory_option
@options.workers_option
@options.output_option
@options.overrides_option
@click.option("--force", is_flag=True, help="Replace an output that is not this plan's.")
@options.locked_option
@options.offline_option
@click.option("--dry-run", is_flag=True, help="Only show what would be done, as `plan` does.")
@click.option("--report", type=options.PATH, help="Write seconds, bytes and memory as JSON.")
@click.option("--log-file", type=options.PATH, help="Append all messages, with times, to a file.")
@options.format_option
def command(
    plan_file: Path,
    device: str,
    memory: int | None,
    workers: int | None,
    output: Path | None,
    overrides: tuple[str, ...],
    force: bool,
    locked: bool,
    offline: bool,
    dry_run: bool,
    report: Path | None,
    log_file: Path | None,
    style: str,
) -> None:
    """Make the output that PLAN asks for, and a lock of its inputs beside PLAN.

    Nothing is done where the output is up to date. A stopped run goes on where it was when the
    same command is given again. Prints the output's path.
    """
    from mergeengine.plan import load_plan
    from mergeengine.workflow.run import run

    if log_file is not None:
        open_log(log_file)
    plan = load_plan(plan_file)
    with Progress() as progress:
        result = run(
            plan_file,
            overrides=overrides,
            output=output,
            device=device,
            memory=memory,
            workers=workers,
            force=force,
            locked=locked,
            offline=offline,
            progress=progress.tell,
        )
    tell_findings(result.notes, result.warnings)
    document = {**result.report, "notes": list(result.notes), "warnings": list(result.warnings)}
    if report is not None:
        _write_report(report, document)
    say(_summary(document))
    if style == "json":
        emit_json(document)
    else:
        emit(str(result.output))


def _summary(report: Mapping[str, Any]) -> str:
    if not report["made"]:
        return "up to date: the plan and its inputs are those that made it"
    tensors = ", ".join(f"{count} {kind}" for kind, count in report["tensors"].items())
    done = report["bytes"]
    rate = report["gigabytes_per_second"]
    return (
        f"done in {report['seconds']['total']:.3g} s: {tensors}; {format_size(done['read'])} read, "
        f"{format_size(done['written'])} written" + (f", {rate:.2g} GB/s" if rate else "")
    )


def _write_report(path: Path, document: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(json_text(document), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: the report cannot be written: {error.strerror}") from error
