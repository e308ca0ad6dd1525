"""Running both: a process of each does all configurations."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from benchmarks.compare_mergekit.cases import Case
from benchmarks.throughput.inputs import ROOT

Tell = Callable[[str], None]
_LAST_WORDS = 600


class Absent(Exception):
    """There is no mergekit; the text says how to have one."""


def mergekit(program: str = "mergekit-yaml") -> str:
    """The path of one of mergekit's programs. Raises Absent."""
    given = os.environ.get("MERGEKIT")
    if given:
        found = Path(given).with_name(program)
        if not found.is_file() or not Path(given).is_file():
            raise Absent(f"MERGEKIT is {given}, which is not mergekit's mergekit-yaml")
        return str(found)
    local = ROOT / ".mergekit" / "bin" / program
    installed = str(local) if local.is_file() else shutil.which(program)
    if installed is None:
        raise Absent(
            f"there is no {program} on PATH or in .mergekit/bin: install mergekit into an "
            "environment of its own (python -m venv .mergekit && .mergekit/bin/pip install "
            "mergekit==0.1.5), or set MERGEKIT to its mergekit-yaml"
        )
    return installed


def our_arguments(config: Path, output: Path, *, exact: bool = False) -> list[str]:
    """mergeengine on a mergekit configuration: as mergekit rounds, or ``exact`` in float64."""
    numerics = (
        ("numerics.compute_dtype=float64", "output.dtype=float64")
        if exact
        else ("numerics.compatibility=mergekit",)
    )
    settings = [word for each in numerics for word in ("--set", each)]
    return ["run", str(config), "--output", str(output), *settings, "--force"]


def run_theirs(cases: Sequence[Case], models: Path, folder: Path, tell: Tell) -> dict[str, str]:
    """Outputs in ``folder/NAME``; what mergekit could not do, and its last words.

    All configurations are documents of one file, since starting it takes longer than merging; what
    follows one that it cannot do is asked for again.
    """
    program = mergekit("mergekit-multi")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    failed: dict[str, str] = {}
    left = list(cases)
    while left:
        tell(f"mergekit: {len(left)} configurations")
        documents = [{"name": case.name, **case.config(models / case.dtype)} for case in left]
        config = folder / "configs.yml"
        config.write_text(yaml.safe_dump_all(documents, sort_keys=False), encoding="utf-8")
        log = folder / "log.txt"
        command = [program, str(config), "-I", str(folder), "--quiet", "--no-copy-tokenizer"]
        status = _run(command, log)
        if not status:
            break
        undone = [case for case in left if not (folder / case.name / "config.json").exists()]
        if not undone:
            break
        failed[undone[0].name] = _last_words(log)
        tell(f"mergekit could not do {undone[0].name}")
        shutil.rmtree(folder / undone[0].name, ignore_errors=True)
        left = undone[1:]
    return failed


def run_ours(
    cases: Sequence[Case], models: Path, folder: Path, tell: Tell, *, exact: bool = False
) -> dict[str, str]:
    """The same of mergeengine, in one process as well."""
    tell(f"mergeengine{', exactly' if exact else ''}: {len(cases)} configurations")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines = []
    for case in cases:
        config = folder / f"{case.name}.yml"
        written = case.config(models / case.dtype)
        config.write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
        arguments = our_arguments(config, folder / case.name, exact=exact)
        lines.append(json.dumps([arguments, str(_log(folder, case))]) + "\n")
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.compare_mergekit.ours"],
        cwd=ROOT,
        input="".join(lines),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    codes = map(int, ended.stdout.split())
    return {
        case.name: _last_words(_log(folder, case))
        for case, code in zip(cases, codes, strict=True)
        if code
    }


def _log(folder: Path, case: Case) -> Path:
    return folder / f"{case.name}.log"


def _last_words(log: Path) -> str:
    return log.read_text(errors="replace")[-_LAST_WORDS:].strip()


def _run(command: Sequence[str], log: Path) -> int:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with log.open("wb") as file:
        return subprocess.run(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            check=False,
        ).returncode
