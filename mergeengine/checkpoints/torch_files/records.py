"""The zip format of torch files: where each record lies, by the archive's directory.

Records are stored uncompressed, so that a storage is a range of the file, like a tensor of
safetensors. The standard library reads the directory; where a record's bytes begin is said by the
header in front of it, whose length the directory does not know.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mergeengine.checkpoints.documents import listing, shown
from mergeengine.checkpoints.reading import Read
from mergeengine.errors import CheckpointError

_MAX_PICKLE = 100_000_000  # bytes of a record that is read, and of the archive's directory
_HEADER = struct.Struct("<26x2H")  # in front of a record: ..., lengths of its name and extra
_SIGNATURE = b"PK\x03\x04"
_ENCRYPTED = 1


@dataclass(frozen=True, slots=True)
class Archive:
    """A torch file's zip archive; record names are without the folder that all of them share."""

    label: str
    read: Read
    records: Mapping[str, zipfile.ZipInfo]
    ends: Mapping[int, int]  # where what follows a record begins, by where the record does

    @classmethod
    def open(cls, read: Read, size: int, label: str) -> "Archive":
        """The directory of an archive of `size` bytes, checked; nothing else is read."""
        try:
            with zipfile.ZipFile(_Stream(read, size, label)) as archive:
                infos, directory = archive.infolist(), archive.start_dir
        except CheckpointError:
            raise
        except Exception as error:  # zipfile raises half a dozen kinds on malformed archives
            raise _damaged(label, str(error)) from error
        names = [info.filename for info in infos]
        mains = [n for n in names if n.endswith("/data.pkl") and n.count("/") == 1]
        if len(mains) != 1:
            raise CheckpointError(
                f"{label}: a zip archive, but not one of torch's: expected one record "
                f"NAME/data.pkl, found {listing(mains or names, 4)}"
            )
        prefix = mains[0].removesuffix("data.pkl")
        records: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            name = info.filename.removeprefix(prefix)
            if name in records:
                raise _damaged(label, f"it has two records {shown(name)}")
            records[name] = info
        starts = sorted(info.header_offset for info in infos)
        if starts[0] < 0 or len(set(starts)) < len(starts) or starts[-1] >= directory:
            raise _damaged(label, "its records overlap")
        return cls(label, read, records, dict(zip(starts, [*starts[1:], directory], strict=True)))

    def content(self, name: str) -> bytes:
        """A small record, whole."""
        info = self._record(name)
        if info.file_size > _MAX_PICKLE or info.compress_size > _MAX_PICKLE:
            raise _damaged(self.label, f"its record {shown(name)} is implausibly large")
        start = self._start(name, info)
        data = self.read(start, info.compress_size)
        if info.compress_type == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-15).decompress(data, info.file_size + 1)
            except zlib.error as error:
                raise _damaged(self.label, f"record {shown(name)}: {error}") from error
        elif info.compress_type != zipfile.ZIP_STORED:
            raise _damaged(self.label, f"its record {shown(name)} is compressed in an unknown way")
        if len(data) != info.file_size:  # no checksum: torch can be told to leave it out
            raise _damaged(self.label, f"its record {shown(name)} is of another size")
        return data

    def places(self, names: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Offset in the file and size of records that are to be read where they lie."""
        places = {}
        for name in names:
            info = self._record(name)
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise CheckpointError(
                    f"{self.label}: the record {shown(name)} is compressed, which torch does not "
                    "do to weights: load it with torch and save it again"
                )
            places[name] = (self._start(name, info), info.file_size)
        return places

    def _record(self, name: str) -> zipfile.ZipInfo:
        info = self.records.get(name)
        if info is None:
            raise _damaged(self.label, f"it has no record {shown(name)}")
        if info.flag_bits & _ENCRYPTED or info.volume:
            raise CheckpointError(
                f"{self.label}: its record {shown(name)} is encrypted or on another disk: load it "
                "with torch and save it again"
            )
        return info

    def _start(self, name: str, info: zipfile.ZipInfo) -> int:
        """Where the bytes of a record begin; all of them are in front of what follows it."""
        header = self.read(info.header_offset, _HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_SIGNATURE):
            raise _damaged(self.label, f"its record {shown(name)} is not where the directory says")
        name_length, extra_length = _HEADER.unpack(header)
        start: int = info.header_offset + _HEADER.size + name_length + extra_length
        if start + info.compress_size > self.ends[info.header_offset]:
            raise _damaged(self.label, f"its record {shown(name)} overlaps the next")
        return start


class _Stream(io.RawIOBase):
    """A file as zipfile wants it; never more at a time than a directory may have."""

    def __init__(self, read: Read, size: int, label: str) -> None:
        self._read, self._size, self._label = read, size, label
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise OSError("a place before the beginning of the file")
        self._position = origin + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > _MAX_PICKLE:
            raise _damaged(self._label, "its directory is implausibly large")
        data = self._read(self._position, wanted) if wanted else b""
        self._position += len(data)
        return data


def _damaged(label: str, detail: str) -> CheckpointError:
    return CheckpointError(
        f"{label}: the zip archive is damaged or truncated ({detail}): copy or download it again"
    )
