"""``mergeengine init``."""

from pathlib import Path

import click

from mergeengine.cli import options
from mergeengine.cli.console import emit, json_text, say
from mergeengine.errors import OutputError


@click.command("init")
@click.argument("kind", default="recycle")
@click.option(
    "--output",
    type=options.PATH,
    default=Path("plan.yaml"),
    help="The file to write; - is stdout.  [default: plan.yaml]",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def command(kind: str, output: Path, force: bool) -> None:
    """Write a commented plan of a KIND, and beside it the schema by which editors complete it.

    Kinds: recycle (the default), backport, multi, paramdelta, language, pretrained.
    """
    from mergeengine.plan.json_schema import FILE, plan_schema
    from mergeengine.plan.templates import TEMPLATES, template
    from mergeengine.values.nearest import did_you_mean

    if kind not in TEMPLATES:
        raise click.ClickException(
            f"there is no kind `{kind}`: expected one of {', '.join(TEMPLATES)}"
            f"{did_you_mean(kind, TEMPLATES)}"
        )
    text = template(kind)
    if str(output) == "-":
        emit(text.rstrip())
        return
    schema = output.with_name(FILE)
    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
        if not schema.exists() or force:
            schema.write_text(json_text(plan_schema()), encoding="utf-8")
    except FileExistsError:
        raise OutputError(
            f"{output}: there is such a file; --force replaces it, --output names another"
        ) from None
    except OSError as error:
        raise OutputError(f"{error.filename}: cannot be written: {error.strerror}") from None
    say(f"wrote {output}; `mergeengine validate {output}` checks it after you have changed it")
