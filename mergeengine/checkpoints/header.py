"""The header of a safetensors file, parsed strictly: it says where every tensor lies, and no more.

A file is eight bytes (the length of the header, little-endian), the header (a JSON object: name to
dtype, shape and offsets), and the tensors' bytes without holes up to the end of the file.
"""

from typing import Any

from mergeengine.checkpoints.documents import parse_object, shown
from mergeengine.checkpoints.reading import Read
from mergeengine.errors import CheckpointError
from mergeengine.lazy.dtypes import BY_CODE, DType
from mergeengine.lazy.stored import Stored, StoredFile

_MAX_HEADER = 100_000_000  # the format's own limit
_MAX_DIMS = 64  # no framework goes further, and the product of the dims stays cheap
_MAX_SIZE = 2**63 - 1


def read_header(read: Read, size: int, label: str) -> bytes:
    """The header's JSON text, from a file of `size` bytes; `label` names the file in messages."""
    if size < 8:
        raise _truncated(label, "8 bytes or more", size)
    prefix = read(0, 8)
    if len(prefix) < 8:
        raise _truncated(label, "8 bytes or more", len(prefix))
    length = int.from_bytes(prefix, "little")
    if length > _MAX_HEADER:
        raise CheckpointError(
            f"{label}: not a safetensors file: its header would be {length} bytes long "
            f"(at most {_MAX_HEADER} are allowed)"
        )
    if 8 + length > size:
        raise _truncated(label, f"a header of {length} bytes", size)
    text = read(8, length)
    if len(text) < length:
        raise _truncated(label, f"a header of {length} bytes", 8 + len(text))
    return text


def parse_header(text: bytes, file: StoredFile, source: str, label: str) -> tuple[Stored, ...]:
    """The tensors that a header describes, by ascending offset, checked against the file's size."""
    entries = parse_object(text, f"{label}: the header")
    _check_metadata(entries.pop("__metadata__", None), label)
    start = 8 + len(text)
    placed: list[tuple[int, int, int, Stored]] = []  # begin, end, number (so that none is equal)
    for name, entry in entries.items():
        if not name or not name.isprintable():
            raise CheckpointError(
                f"{label}: {shown(name)} is not a usable tensor name (empty or not printable)"
            )
        dtype, shape, begin, end = _entry(name, entry, label)
        stored = Stored(source, name, dtype, shape, file, start + begin)
        if end - begin != stored.nbytes:
            raise CheckpointError(
                f"{label}: tensor {shown(name)} of {dtype} {list(shape)} takes {stored.nbytes} "
                f"bytes, but its offsets [{begin}, {end}] hold {end - begin}"
            )
        placed.append((start + begin, start + end, len(placed), stored))
    placed.sort()
    _check_layout(placed, start, file.size, label)
    return tuple([stored for *_, stored in placed])


def _entry(name: str, entry: Any, label: str) -> tuple[DType, tuple[int, ...], int, int]:
    """dtype, shape, begin and end of one tensor."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        found = sorted(entry) if isinstance(entry, dict) else entry
        raise CheckpointError(
            f"{label}: tensor {shown(name)} must have exactly dtype, shape and data_offsets, "
            f"found {shown(found)}"
        )
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = BY_CODE.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise CheckpointError(
            f"{label}: tensor {shown(name)} has the dtype {shown(code)}, which cannot be merged "
            f"(sub-byte and unknown formats are refused; known are {', '.join(BY_CODE)}): use the "
            "model's unquantised checkpoint"
        )
    if not isinstance(shape, list) or len(shape) > _MAX_DIMS or not _are_sizes(shape):
        raise CheckpointError(
            f"{label}: tensor {shown(name)} has the shape {shown(shape)}: expected a list of at "
            f"most {_MAX_DIMS} whole numbers that are not negative"
        )
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not _are_sizes(offsets)
        or offsets[0] > offsets[1]
    ):
        raise CheckpointError(
            f"{label}: tensor {shown(name)} has the data_offsets {shown(offsets)}: expected "
            "[begin, end] in bytes, begin not after end"
        )
    return dtype, tuple(shape), offsets[0], offsets[1]


def _are_sizes(numbers: list[Any]) -> bool:
    """Whether all are whole numbers from 0 on, of 63 bits; true and 1.0 are none."""
    return {int}.issuperset(map(type, numbers)) and (
        not numbers or (min(numbers) >= 0 and max(numbers) <= _MAX_SIZE)
    )


def _check_layout(
    placed: list[tuple[int, int, int, Stored]], start: int, size: int, label: str
) -> None:
    """The tensors fill the file from the header to its end: no overlap, no hole, no rest."""
    position = start
    for begin, end, _, tensor in placed:
        if begin != position:
            problem = "overlaps the one before it" if begin < position else "follows a hole"
            raise CheckpointError(
                f"{label}: tensor {shown(tensor.name)} {problem}: it begins at byte "
                f"{begin}, expected was {position}"
            )
        position = end
    if position > size:
        raise _truncated(label, f"{position} bytes", size)
    if position < size:
        raise CheckpointError(
            f"{label}: {size - position} bytes at the end belong to no tensor: {position} bytes "
            f"expected, {size} there; the file is damaged or not what its header says"
        )


def _check_metadata(metadata: Any, label: str) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{label}: __metadata__ must map names to strings")


def _truncated(label: str, expected: str, found: int) -> CheckpointError:
    return CheckpointError(
        f"{label}: the file is truncated: {expected} expected, {found} bytes there; "
        "copy or download it again"
    )
