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
    help="The file to write; - is stdout.  [default: plan.yaml, or chain.yaml]",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def command(kind: str, output: Path | None, force: bool) -> None:
    """Write a commented plan of a KIND, or a chain, and beside it its schema for editors.

    Kinds: recycle (the default), backport, multi, paramdelta, language, pretrained, and chain.
    """
    from mergeengine.chain import json_schema as of_chains
    from mergeengine.chain.starter import CHAIN
    from mergeengine.plan import json_schema as of_plans
    from mergeengine.plan.templates import TEMPLATES, template
    from mergeengine.values.nearest import did_you_mean

    kinds = (*TEMPLATES, "chain")
    if kind not in kinds:
        raise click.ClickException(
            f"there is no kind `{kind}`: expected one of {', '.join(kinds)}"
            f"{did_you_mean(kind, kinds)}"
        )
    if kind == "chain":
        text, name, form = CHAIN, of_chains.FILE, of_chains.chain_schema()
    else:
        text, name, form = template(kind), of_plans.FILE, of_plans.plan_schema()
    output = output or Path("chain.yaml" if kind == "chain" else "plan.yaml")
    if str(output) == "-":
        emit(text.rstrip())
        return
    schema = output.with_name(name)
    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
        if not schema.exists() or force:
            schema.write_text(json_text(form), encoding="utf-8")
    except FileExistsError:
        raise OutputError(
            f"{output}: there is such a file; --force replaces it, --output names another"
        ) from None
    except OSError as error:
        raise OutputError(f"{error.filename}: cannot be written: {error.strerror}") from None
    say(f"wrote {output}; `mergeengine validate {output}` checks it after you have changed it")
