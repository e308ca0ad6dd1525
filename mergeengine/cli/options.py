"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mergeengine.units import parse_size

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


class Size(click.ParamType[int]):
    """A size in bytes, as ``units`` reads it."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


PATH = click.Path(path_type=Path)

plan_argument = click.argument("plan_file", metavar="PLAN", type=PATH)
overrides_option = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Replace a value of the plan, e.g. scaling=0.5. May be repeated.",
)
offline_option = click.option(
    "--offline", is_flag=True, help="Take hub models from the local cache, without a connection."
)
format_option = click.option(
    "--format",
    "style",
    type=click.Choice(["text", "json"]),
    default="text",
    help="Of what is printed on stdout.  [default: text]",
)

_CHAIN_CHOICE = (
    click.option(
        "--step",
        "steps",
        metavar="ID",
        multiple=True,
        help="Of a chain: only this step and what it needs. May be repeated.",
    ),
    click.option(
        "--from",
        "start",
        metavar="ID",
        help="Of a chain: only this step and those that follow; what comes before stays as it is.",
    ),
)

_RUN_OPTIONS = (
    click.option(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:N or cuda:0,cuda:1.  [default: the accelerator, if there is one]",
    ),
    click.option(
        "--memory",
        type=Size(),
        help="Most memory to use, e.g. 4GiB.  [default: a quarter of the RAM or container limit]",
    ),
    click.option(
        "--device-memory",
        type=Size(),
        help="Most memory to use on each accelerator.  [default: half of what is free there]",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        metavar="N",
        help="Threads that read, compute and write.  [default: by the processors]",
    ),
    click.option(
        "--output", "-o", type=PATH, help="Where the output goes, whatever the plan says."
    ),
    overrides_option,
    click.option(
        "--sweep",
        "sweeps",
        metavar="KEY=V,V,...",
        multiple=True,
        help="Make an output for each value, e.g. scaling=0.3,0.5, with one reading of the inputs. "
        "Repeated: every combination.",
    ),
    click.option("--force", is_flag=True, help="Replace an output that is not this plan's."),
    click.option("--locked", is_flag=True, help="Refuse inputs that are not those of the lock."),
    offline_option,
)


def chain_choice(function: CommandT) -> CommandT:
    """Which steps of a chain are meant."""
    for option in reversed(_CHAIN_CHOICE):
        function = option(function)
    return function


def run_options(function: CommandT) -> CommandT:
    """All that decides what a run does; ``run`` and ``plan`` share it."""
    for option in reversed(_RUN_OPTIONS):
        function = option(function)
    return function
