"""What is printed: data on stdout, everything else on stderr, and all of it in the log file."""

import json
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

_log = logging.getLogger("mergeengine")
_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_WARNING = click.style("warning:", fg="yellow", bold=True)
_ERROR = click.style("error:", fg="red", bold=True)


class _ToStderr(logging.Handler):
    """Warnings that the library logs (the hub fails, ...), as the command line words them."""

    def emit(self, record: logging.LogRecord) -> None:
        _to_stderr(f"{_WARNING} {record.getMessage()}")


@contextmanager
def logging_set_up() -> Iterator[None]:
    """While a command runs, the library's warnings go to stderr; at its end logs are closed."""
    handler = _ToStderr(logging.WARNING)
    handler.addFilter(lambda record: record.name != _log.name)
    _log.addHandler(handler)
    _log.setLevel(logging.DEBUG)
    _log.propagate = False
    try:
        yield
    finally:
        for each in list(_log.handlers):
            _log.removeHandler(each)
            each.close()
        _log.setLevel(logging.NOTSET)
        _log.propagate = True


def open_log(path: Path) -> None:
    """Write everything that is said, with times and tracebacks, to a file too."""
    try:
        handler = logging.FileHandler(path, mode="a", encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"--log-file {path}: {error.strerror}") from error
    handler.setFormatter(logging.Formatter(_FORMAT))
    _log.addHandler(handler)
    _log.info("mergeengine %s", " ".join(sys.argv[1:]))


def emit(text: str) -> None:
    """A line or more of data."""
    click.echo(text)


def emit_json(document: Any) -> None:
    click.echo(json_text(document), nl=False)


def emit_table(rows: Iterable[tuple[str, str]]) -> None:
    """Two columns, the first as wide as its widest entry."""
    rows = list(rows)
    width = max((len(left) for left, _ in rows), default=0)
    for left, right in rows:
        emit(f"{left:<{width}}  {right}".rstrip())


def json_text(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def say(text: str) -> None:
    """Tell the person at the terminal."""
    _log.info(text)
    _to_stderr(text)


def complain(text: str) -> None:
    _log.error(text)
    _to_stderr(f"{_ERROR} {text}")


def warn(text: str) -> None:
    _log.warning(text)
    _to_stderr(f"{_WARNING} {text}")


def tell_findings(notes: Iterable[str], warnings: Iterable[str]) -> None:
    for note in notes:
        say(f"note: {note}")
    for warning in warnings:
        warn(warning)


def log_exception() -> None:
    """The traceback of the exception at hand: for the log file only."""
    _log.debug("traceback", exc_info=True)


def _to_stderr(text: str) -> None:
    """A run does not die of a terminal that has gone."""
    with suppress(OSError):
        click.echo(text, err=True)
