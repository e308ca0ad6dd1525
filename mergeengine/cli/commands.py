"""The program and its commands, each imported only when it is called."""

from importlib import import_module

import click

from mergeengine.values.nearest import did_you_mean

PROGRAM = "mergeengine"

# Name -> one line of help. Each command lives in a module of its own name.
COMMANDS = {
    "run": "Make a plan's output, or bring a chain up to date.",
    "validate": "Check plans; opens no model.",
    "init": "Write a commented plan to start from.",
    "plan": "Show what a run would do.",
    "explain": "Show the formula of each tensor and the plan line behind each number.",
    "verify": "Check an output against its manifest, to the last byte.",
    "lock": "Write, check or update the lock of a plan's inputs.",
    "inspect": "Describe a model.",
    "chain": "Look at chains: the state of their steps, and a picture.",
    "convert": "Write the plan that a mergekit configuration is.",
    "methods": "List and explain the merge methods.",
    "schema": "Print the JSON Schema of plans or chains, for editors.",
    "clean": "Remove what stopped runs left unfinished.",
}

_EPILOG = """\
\b
Exit codes:
  0    done, or nothing to do
  1    anything unforeseen: a fault of mergeengine or the machine, a closed pipe
  2    the command line or the plan is wrong
  3    an input model cannot be found or read, or does not fit the others
  4    memory, disk space or the device do not suffice
  5    the output cannot be written, or may not be replaced
  6    another run is writing this output
  7    an output, a lock or the locked inputs are not what they should be
  8    a step of a chain failed
  9    a chain waits for a step that is done elsewhere
  130  stopped by Ctrl-C or SIGTERM; the same command goes on from there
"""


class _LazyGroup(click.Group):
    """Lists its commands from a table, so that ``--help`` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"mergeengine.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"there is no command `{args[0]}`{did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"{PROGRAM} {version(PROGRAM)}")
        ctx.exit()


@click.command(
    cls=_LazyGroup,
    epilog=_EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Print the version.",
)
@click.option("--debug", is_flag=True, help="Print the traceback of an internal error.")
@click.pass_context
def mergeengine(context: click.Context, debug: bool) -> None:
    """Carry fine-tuning over to new model versions: checkpoints merged by plan, out of core."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
