"""``mergeengine inspect``."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergeengine.cli import options
from mergeengine.cli.console import emit, emit_json, emit_table, warn
from mergeengine.lazy.weight import leaves
from mergeengine.units import format_size

if TYPE_CHECKING:
    from mergeengine.analysis.inspect import Summary


@click.command("inspect")
@click.argument("model")
@click.option("--tensors", "with_tensors", is_flag=True, help="List every tensor.")
@click.option("--kinds", "with_kinds", is_flag=True, help="List what `kind` can select.")
@options.offline_option
@options.format_option
def command(model: str, with_tensors: bool, with_kinds: bool, offline: bool, style: str) -> None:
    """Describe MODEL: a folder, a file of weights, org/name[@revision] on the hub, or a
    URL of either.

    Reads the config and the headers of the weights, no tensor.
    """
    from mergeengine.analysis.inspect import kinds_of, summarise
    from mergeengine.checkpoints.checkpoint import open_checkpoint

    # On a command line, unlike in a plan, what exists needs no "./".
    if not model.startswith(("./", "../", "/", "~")) and Path(model).exists():
        model = f"./{model}"
    checkpoint = open_checkpoint(model, offline=offline, weights="either")
    summary = summarise(checkpoint)
    for warning in summary.warnings:
        warn(warning)
    if style == "json":
        document = asdict(summary)
        document["files"] = [{"name": name, "bytes": size} for name, size in summary.files]
        if with_tensors:
            document["tensors"] = [
                {
                    "name": tensor.name,
                    "dtype": tensor.dtype.name,
                    "shape": list(tensor.shape),
                    "bytes": tensor.nbytes,
                    "file": next(leaves(tensor)).file.path.name,
                }
                for tensor in checkpoint.tensors.values()
            ]
        if with_kinds:
            document["kinds"] = [asdict(share) for share in kinds_of(checkpoint)]
        emit_json(document)
        return
    emit_table(_lines(summary))
    if with_kinds:
        emit("")
        emit_table(
            (
                each.kind,
                f"{each.tensors} tensors, {_count(each.elements)} parameters, as {each.example}",
            )
            for each in kinds_of(checkpoint)
        )
    if with_tensors:
        emit("")
        emit_table(
            (tensor.name, f"{tensor.dtype.name:<8}  {list(tensor.shape)}")
            for tensor in checkpoint.tensors.values()
        )


def _lines(summary: "Summary") -> Iterator[tuple[str, str]]:
    yield "model", summary.reference
    if summary.revision is not None:
        yield "commit", summary.revision
    if summary.architectures or summary.model_type:
        names = ", ".join(summary.architectures)
        kind = f"({summary.model_type})" if summary.model_type else ""
        yield "architecture", f"{names} {kind}".strip()
    if summary.adapter is not None:
        of = f" of {summary.adapts}" if summary.adapts else ""
        yield "adapter", f"{summary.adapter}{of}"
    if summary.quantised is not None:
        yield "quantised", summary.quantised
    yield "parameters", f"{_count(summary.parameters)} ({summary.parameters})"
    yield "tensors", f"{summary.tensor_count}, {format_size(summary.bytes)}"
    for share in summary.dtypes:
        yield "", f"{share.dtype}: {share.tensors}, {format_size(share.bytes)}"
    for number, (name, size) in enumerate(summary.files):
        yield "" if number else "weights", f"{name}  {format_size(size)}"
    if summary.companions:
        yield "other files", ", ".join(summary.companions)


def _count(number: int) -> str:
    """``8.03 B``: as models' sizes are told."""
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return str(number)
