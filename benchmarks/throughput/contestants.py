"""Who competes: each a command that makes ``target + (ft - base)`` from the same three models."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.throughput.floor import Settings, write_job
from benchmarks.throughput.inputs import ITEMSIZE, ROLES, Inputs

FLOOR = "floor"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A command and its folder: there it writes ``out`` and, if it reports, ``report.json``.

    ``imports`` is a command that does nothing but import what the contestant imports, for one
    that does not tell its time without imports. ``foreign`` programs may fail and are left out.
    """

    name: str
    title: str
    folder: Path
    command: tuple[str, ...]
    imports: tuple[str, ...] | None = None
    foreign: bool = False

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def clear(self) -> None:
        """Forget the last run."""
        shutil.rmtree(self.output, ignore_errors=True)
        for name in ("report.json", "plan.lock"):
            (self.folder / name).unlink(missing_ok=True)

    def own_figures(self) -> tuple[float | None, int | None]:
        """Seconds and peak anonymous bytes, both without imports, as the process itself says."""
        path = self.folder / "report.json"
        if not path.exists():
            return None, None
        report = json.loads(path.read_text())
        seconds = report["seconds"]
        if isinstance(seconds, dict):
            seconds = seconds["total"]
        return seconds, report.get("memory", {}).get("measured_bytes")


class Absent(Exception):
    """A program that is not installed; the text says how to have it measured."""


def make(name: str, inputs: Inputs, way: Settings | None = None) -> Contestant:
    """A contestant by its name (a floor needs a way), with its files written. Raises Absent."""
    folder = inputs.folder / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    return MAKERS[name](inputs, folder, way)


def _floor(inputs: Inputs, folder: Path, way: Settings | None) -> Contestant:
    job = folder / "job.json"
    assert way is not None
    write_job(job, way, [inputs.files(role) for role in ROLES], folder / "out")
    module = (sys.executable, "-m", "benchmarks.throughput.floor")
    report = str(folder / "report.json")
    return Contestant(FLOOR, "floor", folder, (*module, str(job), report))


def _mergeengine(inputs: Inputs, folder: Path, _: Settings | None) -> Contestant:
    plan = folder / "plan.yaml"
    plan.write_text(
        "version: 1\n"
        "target: ../../target\n"
        "source_base: ../../base\n"
        "source_ft: ../../ft\n"
        "output:\n"
        "  path: ./out\n"
        f"  shard_size: {inputs.layout.shard_bytes}\n"
    )
    module = (sys.executable, "-m", "mergeengine", "run")
    report = str(folder / "report.json")
    return Contestant(
        "mergeengine", "**mergeengine**", folder, (*module, str(plan), "--report", report)
    )


def _naive(inputs: Inputs, folder: Path, _: Settings | None) -> Contestant:
    module = (sys.executable, "-m", "benchmarks.throughput.naive")
    paths = (str(inputs.folder), str(folder / "out"), str(folder / "report.json"))
    return Contestant("naive", "naive", folder, (*module, *paths))


def _mergekit(inputs: Inputs, folder: Path, _: Settings | None) -> Contestant:
    return _any_mergekit("mergekit", "mergekit", "", inputs, folder)


def _mergekit_float32(inputs: Inputs, folder: Path, _: Settings | None) -> Contestant:
    dtypes = "dtype: float32\nout_dtype: bfloat16\n"
    return _any_mergekit("mergekit-float32", "mergekit, `dtype: float32`", dtypes, inputs, folder)


def _any_mergekit(name: str, title: str, dtypes: str, inputs: Inputs, folder: Path) -> Contestant:
    program = os.environ.get("MERGEKIT") or shutil.which("mergekit-yaml")
    if program is None:
        raise Absent(
            "there is no mergekit-yaml on PATH; install mergekit into an environment of its own "
            "and set MERGEKIT to its mergekit-yaml"
        )
    if shutil.which(program) is None:
        raise Absent(f"MERGEKIT is {program}, which is not a program")
    weights = {"target": 1, "ft": 1, "base": -1}
    models = "".join(
        f"  - model: {json.dumps(str(inputs.folder / role))}\n"
        f"    parameters: {{weight: {weight}}}\n"
        for role, weight in weights.items()
    )
    config = folder / "config.yaml"
    config.write_text(
        "merge_method: linear\n"
        f"models:\n{models}"
        "parameters: {normalize: false}\n"
        f"base_model: {json.dumps(str(inputs.folder / 'target'))}\n{dtypes}"
    )
    options = (
        "--no-copy-tokenizer",
        "--out-shard-size",
        str(inputs.layout.shard_bytes // ITEMSIZE),
    )
    return Contestant(
        name,
        title,
        folder,
        (program, str(config), str(folder / "out"), *options),
        imports=(program, "--help"),
        foreign=True,
    )


MAKERS: dict[str, Callable[[Inputs, Path, Settings | None], Contestant]] = {
    FLOOR: _floor,
    "mergeengine": _mergeengine,
    "naive": _naive,
    "mergekit": _mergekit,
    "mergekit-float32": _mergekit_float32,
}
