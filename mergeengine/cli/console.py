"""What is printed: data on stdout, everything else on stderr, and all of it in the log file."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

_log = logging.getLogger("mergeengine")
_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class _ToStderr(logging.Handler):
    """Warnings that the library logs (the hub fails, ...), as the command line words them."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"warning: {record.getMessage()}", err=True)


def set_up_logging() -> None:
    """Send the library's warnings to stderr."""
    handler = _ToStderr(logging.WARNING)
    handler.addFilter(lambda record: record.name != _log.name)
    _log.handlers = [handler]
    _log.setLevel(logging.INFO)
    _log.propagate = False


def open_log(path: Path) -> None:
    """Write everything that is said, with times and tracebacks, to a file too."""
    try:
        handler = logging.FileHandler(path, mode="a", encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"--log-file {path}: {error.strerror}") from error
    handler.setFormatter(logging.Formatter(_FORMAT))
    _log.addHandler(handler)


def emit(text: str) -> None:
    """A line or more of data."""
    click.echo(text)


def emit_json(document: Any) -> None:
    click.echo(json_text(document), nl=False)


def json_text(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def say(text: str) -> None:
    """Tell the person at the terminal."""
    _log.info(text)
    click.echo(text, err=True)


def complain(text: str) -> None:
    _log.error(text)
    click.echo(f"{click.style('error:', fg='red', bold=True)} {text}", err=True)


def warn(text: str) -> None:
    _log.warning(text)
    click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {text}", err=True)


def tell_findings(notes: Iterable[str], warnings: Iterable[str]) -> None:
    for note in notes:
        say(f"note: {note}")
    for warning in warnings:
        warn(warning)


def log_exception() -> None:
    """The traceback of the exception at hand: for the log file only."""
    _log.debug("traceback", exc_info=True)
