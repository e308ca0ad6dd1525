"""The command line: what a person types, what it prints, and how it ends.

Data go to stdout; progress, notes, warnings and errors to stderr. Exit codes:

    0    done, or nothing to do
    1    an internal error, or the reader of stdout has gone
    2    the command line or the plan is wrong
    3    an input model cannot be found or read, or does not fit the others
    4    memory, disk space or the device do not suffice
    5    the output cannot be written, or may not be replaced
    6    another run is writing this output
    7    an output, a lock or the locked inputs are not what they should be
    130  stopped by Ctrl-C or SIGTERM; the same command goes on from there
"""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import click

from mergeengine.cli.commands import PROGRAM, mergeengine
from mergeengine.cli.console import complain, log_exception, say
from mergeengine.errors import Interrupted, MergeEngineError

STOPPED = "stopped; the same command starts again, and a run goes on from where it was"
_STOPPED_CODE = Interrupted.exit_code
_ISSUES = "the project's issue tracker"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and leave the process with its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    arguments = sys.argv[1:] if arguments is None else arguments
    code = _guarded(list(arguments))
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _reader_gone()
    sys.exit(code)


def _guarded(arguments: list[str]) -> int:
    """Run a command; whatever it raises becomes one clear text and an exit code."""
    try:
        with mergeengine.make_context(PROGRAM, arguments) as context:
            mergeengine.invoke(context)
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except click.UsageError as error:
        complain(_usage(error))
        return error.exit_code
    except click.ClickException as error:
        complain(error.format_message())
        return 2
    except Interrupted as error:
        say(str(error))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        say(STOPPED)
        return _STOPPED_CODE
    except MergeEngineError as error:
        log_exception()
        complain(str(error))
        return error.exit_code
    except BrokenPipeError:
        return _reader_gone()
    except Exception as error:
        log_exception()
        if "--debug" in arguments:
            raise
        complain(
            f"internal error: {type(error).__name__}: {error}\n"
            f"This is a fault of mergeengine, not of yours. Please report it at {_ISSUES}, with "
            "what `mergeengine --debug ...` prints for the same command"
        )
        return 1
    return 0


def _usage(error: click.UsageError) -> str:
    text = error.format_message().rstrip(".")
    if error.ctx is not None:
        text += f" (`{error.ctx.command_path} --help` says more)"
    return text


def _stop(number: int, frame: FrameType | None) -> None:
    """The first signal stops in good order; the second at once, which loses nothing either."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _stop_at_once)
    raise KeyboardInterrupt


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    os._exit(_STOPPED_CODE)


def _reader_gone() -> int:
    """Nobody reads stdout any more (``| head``): say nothing, not even when Python flushes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
