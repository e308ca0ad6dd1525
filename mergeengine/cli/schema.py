"""``mergeengine schema``."""

import click

from mergeengine.cli.console import emit_json


@click.command("schema")
@click.argument("kind", type=click.Choice(["plan", "chain"]), default="plan")
def command(kind: str) -> None:
    """Print the JSON Schema of plans or chains, by which editors complete and check them.

    With the yaml-language-server: `mergeengine schema > mergeengine.schema.json`, and as first line
    of a plan `# yaml-language-server: $schema=mergeengine.schema.json`, as `init` writes it.
    """
    from mergeengine.chain.json_schema import chain_schema
    from mergeengine.plan.json_schema import plan_schema

    emit_json(plan_schema() if kind == "plan" else chain_schema())
