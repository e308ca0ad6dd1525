"""``mergeengine validate``."""

from pathlib import Path

import click

from mergeengine.cli import options
from mergeengine.cli.console import complain, emit, emit_json, tell_findings
from mergeengine.compiler.merging import method_of
from mergeengine.errors import PlanError
from mergeengine.workflow.reading import is_chain, load_plan


@click.command("validate")
@click.argument("plan_files", metavar="PLAN...", type=options.PATH, nargs=-1, required=True)
@options.format_option
@click.pass_context
def command(context: click.Context, plan_files: tuple[Path, ...], style: str) -> None:
    """Check PLANs and chains: syntax, keys, values. Opens no model and needs no connection.

    The exit code is 2 if any of them is wrong.
    """
    results: list[dict[str, str | bool | None]] = []
    for file in plan_files:
        try:
            warnings = _warnings(file)
        except PlanError as error:
            results.append({"file": str(file), "valid": False, "error": str(error)})
        else:
            results.append({"file": str(file), "valid": True, "error": None})
            tell_findings((), warnings)
    if style == "json":
        emit_json(results)
    else:
        for result in results:
            if result["valid"]:
                emit(f"{result['file']}: OK")
            else:
                complain(str(result["error"]))
    if not all(result["valid"] for result in results):
        context.exit(PlanError.exit_code)


def _warnings(file: Path) -> tuple[str, ...]:
    """Those of a plan or chain; PlanError where it is wrong."""
    if not is_chain(file):
        plan = load_plan(file)
        method_of(plan)
        return plan.warnings
    from mergeengine.workflow.reading import load_chain

    return load_chain(file).warnings
