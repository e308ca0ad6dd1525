"""``mergeengine methods``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from mergeengine.cli.console import emit, emit_json, emit_table
from mergeengine.values.nearest import did_you_mean

if TYPE_CHECKING:
    from mergeengine.methods.registry import Method


@click.command("methods")
@click.argument("name", required=False)
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "json", "markdown"]),
    default="text",
    help="Of what is printed on stdout.  [default: text]",
)
def command(name: str | None, style: str) -> None:
    """List the merge methods that a plan can have, or explain the one called NAME."""
    from mergeengine.methods.registry import methods

    known = methods()
    if name is not None and name not in known:
        raise click.UsageError(f"there is no method `{name}`{did_you_mean(name, known)}")
    chosen = list(known.values()) if name is None else [known[name]]
    if style == "json":
        emit_json([described(each) for each in chosen])
    elif style == "markdown":
        emit("\n".join(markdown(chosen)))
    elif name is None:
        emit_table([(each.name, each.title) for each in chosen])
    else:
        emit("\n".join(_explained(known[name])))


def described(method: "Method") -> dict[str, object]:
    """A method as plain data."""
    return {
        "name": method.name,
        "title": method.title,
        "description": method.description,
        "paper": method.paper,
        "merges": _space(method),
        "sources": method.sources_text,
        "weighted": method.weighted,
        "parameters": [
            {
                "name": option.name,
                "per_source": option.per_source,
                "kind": option.kind,
                "expected": option.expected,
                "default": option.default_text,
                "meaning": option.meaning,
            }
            for option in method.options
        ],
    }


def markdown(chosen: list["Method"]) -> Iterator[str]:
    """The table of the documentation."""
    yield "| method | what it does | of | parameters, with their defaults |"
    yield "|---|---|---|---|"
    for each in chosen:
        options = ", ".join(
            f"`{option.name}`{' (each source)' if option.per_source else ''}: {option.default_text}"
            for option in each.options
        )
        cells = f"{each.title} {each.paper[0].upper()}{each.paper[1:]}.", _space(each)
        yield f"| `{each.name}` | {cells[0]} | {cells[1]}, {each.sources_text} | {options} |"


def _space(method: "Method") -> str:
    return "deltas" if method.space == "deltas" else "models or deltas"


def _explained(method: "Method") -> Iterator[str]:
    yield f"{method.name}: {method.title}"
    if method.description:
        yield ""
        yield from method.description.splitlines()
    yield ""
    yield f"source   {method.paper}"
    yield f"merges   {_space(method)}, {method.sources_text}"
    yield f"scaling  {'the weight of a source' if method.weighted else 'none: no weights'}"
    for heading, per_source in (("each source", True), ("the plan", False)):
        options = [each for each in method.options if each.per_source == per_source]
        if options:
            yield f"\nparameters of {heading}"
        for option in options:
            yield f"  {option.name}: {option.expected}, by default {option.default_text}"
            yield f"      {option.meaning}"
