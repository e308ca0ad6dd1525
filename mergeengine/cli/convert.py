"""``mergeengine convert``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergeengine.cli import options
from mergeengine.cli.console import emit, say, tell_findings
from mergeengine.errors import OutputError, PlanError

if TYPE_CHECKING:
    from mergeengine.mergekit.translate import Translated


@click.command("convert")
@click.argument("config_file", metavar="CONFIG", type=options.PATH)
@click.option(
    "--output",
    "-o",
    type=options.PATH,
    help="The file to write, to whose folder local paths are made to fit.  [default: stdout]",
)
@options.overrides_option
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def command(
    config_file: Path, output: Path | None, overrides: tuple[str, ...], force: bool
) -> None:
    """Write the plan, or the chain, that the mergekit configuration CONFIG is.

    `run` and the other commands take CONFIG as it is, and make the same of it. On stdout, local
    paths are those of a plan in CONFIG's folder.
    """
    from mergeengine.mergekit.recognition import is_config
    from mergeengine.mergekit.writing import yaml_text
    from mergeengine.plan.files import text_of
    from mergeengine.plan.include import rebase
    from mergeengine.plan.overrides import apply_override
    from mergeengine.workflow.reading import parse_chain, parse_plan, translated_from

    text = text_of(config_file)
    if not is_config(text):
        raise PlanError(
            f"{config_file}: this is no mergekit configuration: those have `merge_method`"
        )
    problems, translated = translated_from(text, config_file, overrides)
    (parse_chain if translated.several else parse_plan)(text, config_file, overrides)  # complete
    root = translated.root
    for override in overrides:
        apply_override(root, override, problems)
    if output is not None:
        rebase(root, os.path.relpath(config_file.parent, output.parent))
    written = f"{_head(config_file, translated)}{yaml_text(root)}"
    tell_findings(translated.notes, translated.warnings)
    if output is None:
        emit(written.rstrip())
        return
    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(written)
    except FileExistsError:
        raise OutputError(
            f"{output}: there is such a file; --force replaces it, --output names another"
        ) from None
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error.strerror}") from None
    say(f"wrote {output}")


def _head(file: Path, translated: "Translated") -> str:
    what = "chain" if translated.several else "plan"
    return f"# The {what} of {file.name}, a mergekit configuration, by `mergeengine convert`.\n"
