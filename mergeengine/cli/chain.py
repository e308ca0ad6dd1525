"""``mergeengine chain``: what concerns chains alone."""

from pathlib import Path

import click

from mergeengine.cli import chain_run, options
from mergeengine.cli.console import emit


@click.group("chain")
def command() -> None:
    """Look at chains. `run`, `plan`, `explain` and `validate` take chains as they take plans."""


@command.command("graph")
@click.argument("chain_file", metavar="CHAIN", type=options.PATH)
@click.option(
    "--format",
    "style",
    type=click.Choice(["mermaid", "dot"]),
    default="mermaid",
    help="Mermaid, as Markdown shows it, or DOT of Graphviz.  [default: mermaid]",
)
@options.overrides_option
def graph(chain_file: Path, style: str, overrides: tuple[str, ...]) -> None:
    """Draw which steps take what."""
    from mergeengine.chain.picture import dot, mermaid
    from mergeengine.workflow.reading import load_chain

    chain = load_chain(chain_file, overrides)
    emit((mermaid if style == "mermaid" else dot)(chain))


@command.command("status")
@click.argument("chain_file", metavar="CHAIN", type=options.PATH)
@options.chain_choice
@options.overrides_option
@options.offline_option
@options.format_option
def status(
    chain_file: Path,
    steps: tuple[str, ...],
    start: str | None,
    overrides: tuple[str, ...],
    offline: bool,
    style: str,
) -> None:
    """Show which steps are up to date, which are not, and why. Reads no weights."""
    from mergeengine.workflow.reading import load_chain

    given = {
        "steps": steps,
        "start": start,
        "force": False,
        "locked": False,
        "device": "auto",
        "memory": None,
        "workers": None,
        "device_memory": None,
        "offline": offline,
    }
    chain = load_chain(chain_file, overrides)
    chain_run.tell_foreseen(chain, chain_run.options_of(given), style)
