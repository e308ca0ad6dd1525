"""The format of torch files before 1.6: pickles one after the other, and the storages behind them.

magic number, protocol version, facts of the machine, the object, keys of storages: five pickles
for each key: its number of elements (8 bytes), its elements
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from mergeengine.checkpoints.documents import shown
from mergeengine.checkpoints.reading import Read
from mergeengine.checkpoints.torch_files.unpickler import unpickle
from mergeengine.checkpoints.torch_files.vocabulary import Storage, TorchVocabulary
from mergeengine.errors import CheckpointError

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_MAX_PICKLES = 100_000_000  # bytes of all pickles of a file together
_AHEAD = 256 << 10


@dataclass(frozen=True, slots=True)
class LegacyFile:
    """What the pickles of a legacy file say, where they end, and where each storage lies."""

    content: object
    size: int
    places: Mapping[str, tuple[int, int]]


def read_legacy(read: Read, size: int, label: str, vocabulary: TorchVocabulary) -> LegacyFile:
    """Read the pickles of a file of `size` bytes, and the counts in front of its storages."""
    stream = _Pickles(read, size, label)
    if unpickle(stream, vocabulary, label) != MAGIC:
        raise CheckpointError(f"{label}: a pickle, but not one of torch's: it has no magic number")
    if unpickle(stream, vocabulary, label) != PROTOCOL:
        raise CheckpointError(f"{label}: a torch file of an unknown version")
    system = unpickle(stream, vocabulary, label)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(
            f"{label}: it was saved on a big-endian machine: load it with torch and save it again"
        )
    content = unpickle(stream, vocabulary, label)
    keys = unpickle(stream, vocabulary, label)
    end = stream.tell()
    places = _places(read, end, size, keys, vocabulary.storages, label)
    return LegacyFile(content, end, places)


def _places(
    read: Read, end: int, size: int, keys: object, storages: Mapping[str, Storage], label: str
) -> dict[str, tuple[int, int]]:
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise CheckpointError(f"{label}: damaged: it does not list its storages")
    places: dict[str, tuple[int, int]] = {}
    position = end
    for key in keys:
        storage = storages.get(key)
        if storage is None or key in places:
            raise CheckpointError(
                f"{label}: damaged: the storage {shown(key)} is "
                f"{'there twice' if key in places else 'of no tensor'}"
            )
        nbytes = storage.numel * storage.itemsize
        if position + 8 + nbytes > size:
            raise CheckpointError(
                f"{label}: the file is truncated: {position + 8 + nbytes} bytes or more expected, "
                f"{size} there; copy or download it again"
            )
        (count,) = struct.unpack("<q", read(position, 8))
        if count != storage.numel:
            raise CheckpointError(
                f"{label}: damaged: the storage {shown(key)} has {count} elements, expected were "
                f"{storage.numel}"
            )
        places[key] = (position + 8, nbytes)
        position += 8 + nbytes
    if lacking := [key for key in storages if key not in places]:
        raise CheckpointError(f"{label}: damaged: it does not list the storage {shown(lacking[0])}")
    if position != size:
        raise CheckpointError(
            f"{label}: {size - position} bytes at the end belong to no tensor: the file is damaged "
            "or not what its header says"
        )
    return places


class _Pickles:
    """The beginning of a file, in which its pickles lie, as a stream."""

    def __init__(self, read: Read, size: int, label: str) -> None:
        self._read, self._label = read, label
        self._size = min(size, _MAX_PICKLES)
        self._ahead = b""
        self._start = 0  # of what was read ahead
        self._at = 0  # in what was read ahead

    def tell(self) -> int:
        return self._start + self._at

    def read(self, count: int) -> bytes:
        if self.tell() + count > self._size:
            raise ValueError(f"it goes on behind byte {self._size}")
        self._need(count)
        self._at += count
        return self._ahead[self._at - count : self._at]

    def readline(self) -> bytes:
        end = self._ahead.find(b"\n", self._at)
        while end < 0 and self._start + len(self._ahead) < self._size:
            self._need(len(self._ahead) - self._at + 1)
            end = self._ahead.find(b"\n", self._at)
        return self.read((end + 1 if end >= 0 else len(self._ahead)) - self._at)

    def _need(self, count: int) -> None:
        """At least so many bytes read ahead, of which there are so many."""
        if len(self._ahead) - self._at >= count:
            return
        rest = self._ahead[self._at :]
        self._start, self._at = self.tell(), 0
        behind = self._start + len(rest)
        wanted = min(max(count - len(rest), _AHEAD, len(rest)), self._size - behind)
        self._ahead = rest + self._read(behind, wanted)
        if len(self._ahead) < count:
            raise ValueError("the file ends")
