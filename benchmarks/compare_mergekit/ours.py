"""mergeengine's command line again and again in one process, as mergekit does all its work in one.

Each line of the standard input is one command's arguments and its log, as JSON; each line of the
standard output the exit code.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from mergeengine.cli import call


def main() -> None:
    answers = sys.stdout
    for line in sys.stdin:
        arguments, log = json.loads(line)
        with Path(log).open("w") as file, redirect_stdout(file), redirect_stderr(file):
            code = call(arguments)
        print(code, file=answers, flush=True)


if __name__ == "__main__":
    main()
