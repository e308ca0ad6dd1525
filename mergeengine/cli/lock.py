"""``mergeengine lock``."""

from pathlib import Path

import click

from mergeengine.cli import options
from mergeengine.cli.console import emit_json, emit_table, say


@click.command("lock")
@options.plan_argument
@click.option("--check", is_flag=True, help="Write nothing; exit code 7 if the inputs differ.")
@click.option("--update", is_flag=True, help="Take hub models as they are now, not as locked.")
@options.offline_option
@options.format_option
def command(plan_file: Path, check: bool, update: bool, offline: bool, style: str) -> None:
    """Write the lock beside PLAN: what each of its models is now.

    Hub models keep the commits that are locked already. The lock belongs under version control;
    `run --locked` refuses other inputs. PLAN may be a chain.
    """
    from mergeengine.workflow.locking import check_plan_lock, lock_chain, lock_plan
    from mergeengine.workflow.reading import is_chain, load_chain, load_plan
    from mergeengine.workflow.settings import Settings

    if check and update:
        raise click.ClickException("--check and --update exclude each other")
    settings = Settings(offline=offline)
    if is_chain(plan_file):
        locked = lock_chain(load_chain(plan_file), settings, update=update, check=check)
    elif check:
        locked = check_plan_lock(load_plan(plan_file), settings)
    else:
        locked = lock_plan(load_plan(plan_file), settings, update=update)
    if locked.written:
        say(f"wrote {locked.path}")
    if style == "json":
        models = dict(sorted(locked.lock.models.items()))
        emit_json({"lock": str(locked.path), "written": locked.written, "models": models})
    else:
        emit_table(sorted(locked.lock.models.items()))
