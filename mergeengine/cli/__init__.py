"""The command line: what a person types, what it prints, and how it ends.

Data go to stdout; progress, notes, warnings and errors to stderr. Exit codes:

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

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import click

from mergeengine.cli.commands import PROGRAM, mergeengine
from mergeengine.cli.console import complain, log_exception, logging_set_up, say
from mergeengine.errors import Interrupted, MergeEngineError

STOPPED = "stopped; run the same command again to go on from here"
_STOPPED_CODE = Interrupted.exit_code


def main() -> NoReturn:
    """The console script: run one command and leave the process with its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    code = call(sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # all is done and said: nothing is left to stop
    sys.exit(code)


def call(arguments: Sequence[str]) -> int:
    """Run one command; whatever it raises becomes one clear text, and the exit code."""
    with logging_set_up():
        return _guarded(list(arguments))


def _guarded(arguments: list[str]) -> int:
    context = None
    try:
        with mergeengine.make_context(PROGRAM, arguments) as context:
            mergeengine.invoke(context)
        if sys.stdout is not None:  # closed from the start (`>&-`)
            sys.stdout.flush()
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except click.UsageError as error:
        complain(_usage(error))
        return error.exit_code
    except click.ClickException as error:  # wrong in a way that --help does not help with
        complain(error.format_message())
        return click.UsageError.exit_code
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
        _silence_stdout()
        return 1
    except Exception as error:
        log_exception()
        if context is not None and context.params["debug"]:
            traceback.print_exc()
        complain(_unforeseen(error))
        return 1
    return 0


def _unforeseen(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}"
    described = f"{type(error).__name__}: {error}".rstrip(": ")
    return (
        f"internal error: {described}\nThis is a fault of mergeengine. Please report it, with the "
        "traceback that `mergeengine --debug ...` prints for the same command"
    )


def _usage(error: click.UsageError) -> str:
    text = error.format_message()
    return text if error.ctx is None else f"{text}\n`{error.ctx.command_path} --help` says more"


def _stop(number: int, frame: FrameType | None) -> None:
    """The first signal stops in good order; the second at once, which loses nothing either."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _stop_at_once)
    raise KeyboardInterrupt


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    os._exit(_STOPPED_CODE)


def _silence_stdout() -> None:
    """Its reader has gone (``| head``): no reason to complain, not even when Python flushes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
