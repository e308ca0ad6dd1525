"""``mergeengine verify``."""

from pathlib import Path

import click

from mergeengine.cli import options
from mergeengine.cli.console import emit, emit_json
from mergeengine.cli.progress import Progress
from mergeengine.errors import VerificationError
from mergeengine.units import format_size


@click.command("verify")
@click.argument("output", type=click.Path(exists=True, path_type=Path))
@options.format_option
def command(output: Path, style: str) -> None:
    """Compare OUTPUT with the manifest sealed into it, to the last byte.

    The exit code is 7 where they differ, with the complete list of differences.
    """
    from mergeengine.output.manifest import read_manifest
    from mergeengine.workflow.existing import verify

    manifest = read_manifest(output)
    total = sum(manifest.weights.values()) if manifest is not None else 0
    done = 0
    with Progress() as progress:

        def checked(size: int) -> None:
            nonlocal done
            done += size
            progress.tell("checking", min(done, total), total)

        differences = verify(output, checked)
    if style == "json":
        document = {"output": str(output), "intact": not differences, "differences": differences}
        emit_json(document)
    if differences:
        raise VerificationError(
            f"{output}: not what its manifest says:\n"
            + "\n".join(f"    {difference}" for difference in differences)
        )
    if style == "text":
        emit(f"{output}: OK, {format_size(total)} checked")
