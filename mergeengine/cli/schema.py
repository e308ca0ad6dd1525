"""``mergeengine schema``."""

import click

from mergeengine.cli.console import emit_json


@click.command("schema")
def command() -> None:
    """Print the JSON Schema of plans, by which editors complete and check them.

    With the yaml-language-server: `mergeengine schema > mergeengine.schema.json`, and as first line
    of a plan `# yaml-language-server: $schema=mergeengine.schema.json`, as `init` writes it.
    """
    from mergeengine.plan.json_schema import plan_schema

    emit_json(plan_schema())
