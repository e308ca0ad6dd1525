"""Running a step's program: without a shell, in a clean environment, its words kept and shown.

It writes into a folder of another name, which gets the output's name when the program has ended
with 0 and what it left can be opened. The output's lock is handed to the program, so that no other
run begins while a program is left over from one that was killed.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mergeengine.errors import StepError
from mergeengine.output.workspace import output_error

# What a command gets of the environment of mergeengine: where things are, and the machine's
# accelerators. Everything else it is given by the step, under `env` or `pass_env`.
PASSED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "TZ"),
    *("LD_LIBRARY_PATH", "SSL_CERT_FILE", "VIRTUAL_ENV", "SYSTEMROOT", "TEMP", "TMP"),
    *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "OMP_NUM_THREADS"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
)
_GRACE = 10.0  # seconds that a program has to end in good order


@dataclass(frozen=True, slots=True)
class Call:
    """A program with everything decided. ``held`` is the descriptor of a lock that it inherits."""

    arguments: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    log: Path
    held: int


def environment_of(
    env: Mapping[str, str], pass_env: Sequence[str], own: Mapping[str, str]
) -> dict[str, str]:
    """The environment of a command; see ``PASSED``. StepError where a variable is not there."""
    missing = [name for name in pass_env if name not in os.environ]
    if missing:
        raise StepError(f"`pass_env`: the environment has no variable {', '.join(missing)}")
    passed = {name: os.environ[name] for name in (*PASSED, *pass_env) if name in os.environ}
    return {**passed, "PYTHONUNBUFFERED": "1", **own, **env}


def call(program: Call, tell: Callable[[str], None]) -> int:
    """Run a program to its end; its exit code, or minus the signal that ended it.

    Each line that it writes, to stdout or stderr, goes to the log and to ``tell``. Ctrl-C stops it
    in good order first. StepError where there is no such program.
    """
    try:
        program.log.parent.mkdir(parents=True, exist_ok=True)
        log = program.log.open("wb")
    except OSError as error:
        raise output_error(program.log, error) from error
    with log:
        try:
            process = subprocess.Popen(
                list(program.arguments),
                cwd=program.folder,
                env=dict(program.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(program.held,) if sys.platform != "win32" else (),
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StepError(f"{program.arguments[0]} cannot be run: {reason}") from error
        assert process.stdout is not None
        try:
            rest = b""
            while part := os.read(process.stdout.fileno(), 1 << 16):
                log.write(part)
                log.flush()
                *lines, rest = (rest + part).replace(b"\r", b"\n").split(b"\n")
                for line in lines:
                    if line.strip():
                        tell(line.decode(errors="replace"))
            if rest.strip():
                tell(rest.decode(errors="replace"))
            return process.wait()
        finally:
            process.stdout.close()
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Whatever happened: nothing of the program is left."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
            process.wait()


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    with suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        else:
            process.terminate()
