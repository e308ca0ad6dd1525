"""Small files beside a checkpoint's weights, read whole."""

from pathlib import Path
from typing import Any, BinaryIO

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.documents import parse_object
from mergeengine.errors import CheckpointError
from mergeengine.units import format_binary_size

SIZE_LIMIT = 64 * 2**20  # of a file that is read rather than copied


def read_bytes(checkpoint: Checkpoint, name: str) -> bytes | None:
    """The file's bytes; None where the checkpoint does not have it."""
    path = checkpoint.companion(name)
    if path is None:
        return None
    if path.stat().st_size > SIZE_LIMIT:
        raise CheckpointError(
            f"{checkpoint.reference.text}: {name} is larger than "
            f"{format_binary_size(SIZE_LIMIT)}, which no such file is; check what it holds"
        )
    with open_file(path) as file:
        data = file.read()
    if data.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{checkpoint.reference.text}: {name} is a git-lfs pointer, not the file: "
            f"fetch it with `git lfs pull`"
        )
    return data


def read_json(checkpoint: Checkpoint, name: str) -> dict[str, Any] | None:
    """The JSON object in the file; None where the checkpoint does not have it."""
    data = read_bytes(checkpoint, name)
    return None if data is None else parse_object(data, f"{checkpoint.reference.text}: {name}")


def open_file(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
