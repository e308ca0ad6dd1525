"""``mergeengine clean``."""

from pathlib import Path

import click

from mergeengine.cli import options
from mergeengine.cli.console import emit, emit_json, say
from mergeengine.units import format_size


@click.command("clean")
@click.argument("paths", metavar="[PATH]...", type=options.PATH, nargs=-1)
@click.option("--dry-run", is_flag=True, help="Only list them.")
@options.format_option
def command(paths: tuple[Path, ...], dry_run: bool, style: str) -> None:
    """Remove the partial outputs that stopped runs left, except those in use.

    A PATH is a plan, an output, or a folder to search; the default is the current folder. A run
    that was to go on from a removed partial output starts anew.
    """
    from mergeengine.output.workspace import workspace_path
    from mergeengine.workflow.clean import clean

    for path in paths:
        if not path.exists() and not workspace_path(path.absolute()).exists():
            raise click.ClickException(f"{path}: there is no such file, folder or partial output")
    found = clean(paths or (Path(),), dry_run=dry_run)
    removed = [leftover for leftover in found if not leftover.in_use]
    if style == "json":
        emit_json(
            [{"path": str(each.path), "bytes": each.bytes, "in_use": each.in_use} for each in found]
        )
    else:
        for each in removed:
            emit(f"{each.path}  {format_size(each.bytes)}")
    for each in found:
        if each.in_use:
            say(f"in use, left alone: {each.path}")
    freed = format_size(sum(each.bytes for each in removed))
    say(f"{'would free' if dry_run else 'freed'} {freed}" if removed else "nothing to remove")
