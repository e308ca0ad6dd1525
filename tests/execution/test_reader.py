"""Reading: boxes, many files, and files that change."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mergeengine.errors import CheckpointError, InputChangedError
from mergeengine.execution import views
from mergeengine.execution.reader import Reader
from mergeengine.execution.views import read_box
from mergeengine.lazy.dtypes import FLOAT32
from mergeengine.lazy.stored import Stored, StoredFile


def make(path: Path, content: bytes) -> StoredFile:
    path.write_bytes(content)
    return StoredFile(path, len(content))


def read(reader: Reader, file: StoredFile, offset: int, size: int) -> bytes:
    buffer = bytearray(size)
    reader.read_into(file, offset, memoryview(buffer))
    return bytes(buffer)


def test_more_files_than_may_be_open(tmp_path: Path) -> None:
    files = [make(tmp_path / str(n), bytes([n] * 10)) for n in range(20)]
    with Reader(most_open=3) as reader:
        for _ in range(2):
            for number, file in enumerate(files):
                assert read(reader, file, 2, 5) == bytes([number] * 5)
        reader.check_unchanged()


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    file = make(tmp_path / "a", b"0123456789")
    with Reader() as reader:
        read(reader, file, 0, 10)
        os.truncate(file.path, 4)
        with pytest.raises(InputChangedError, match="ends at byte 4"):
            read(reader, file, 0, 10)


@pytest.mark.parametrize("change", ["touched", "replaced", "removed"])
def test_a_file_that_changes_is_noticed(tmp_path: Path, change: str) -> None:
    file = make(tmp_path / "a", b"0123456789")
    with Reader() as reader:
        read(reader, file, 0, 10)
        if change == "touched":
            os.utime(file.path, ns=(1, 1))
        elif change == "replaced":
            (tmp_path / "b").write_bytes(b"9876543210")
            (tmp_path / "b").replace(file.path)
        else:
            file.path.unlink()
        with pytest.raises(InputChangedError, match="while it was being read"):
            reader.check_unchanged()


def test_a_file_that_is_not_what_its_header_said(tmp_path: Path) -> None:
    file = make(tmp_path / "a", b"0123456789")
    status = file.path.stat()
    with Reader() as reader:
        read(reader, replace(file, state=(status.st_mtime_ns, status.st_ino)), 0, 1)
    for other in ((status.st_mtime_ns + 1, status.st_ino), (status.st_mtime_ns, 0)):
        with Reader() as reader, pytest.raises(InputChangedError, match="since its header"):
            read(reader, replace(file, state=other), 0, 1)
    with Reader() as reader, pytest.raises(InputChangedError, match="expected 9 bytes"):
        read(reader, replace(file, size=9), 0, 1)


def test_a_missing_file(tmp_path: Path) -> None:
    with Reader() as reader, pytest.raises(CheckpointError, match="cannot be opened"):
        read(reader, StoredFile(tmp_path / "none", 3), 0, 1)


@pytest.mark.parametrize("direct", [1, 16, 1 << 20])
@pytest.mark.parametrize("scratch", [64, 300, 1 << 16])
def test_every_box_of_a_tensor(
    tmp_path: Path, direct: int, scratch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long runs one by one, short ones gathered, and windows that are not contiguous."""
    monkeypatch.setattr(views, "DIRECT_RUN", direct)
    values = torch.arange(5 * 6 * 7, dtype=torch.float32).view(5, 6, 7)
    file = make(tmp_path / "t", b"xyz" + values.numpy().tobytes())
    tensor = Stored("m", "t", FLOAT32, (5, 6, 7), file, 3)
    spans = [(0, 5), (1, 4), (2, 3)], [(0, 6), (2, 5), (5, 6)], [(0, 7), (1, 6), (3, 4)]
    room = torch.empty(scratch, dtype=torch.uint8)
    with Reader() as reader:
        for first in spans[0]:
            for second in spans[1]:
                for third in spans[2]:
                    box = (first, second, third)
                    sizes = [high - low for low, high in box]
                    wide = torch.zeros(sizes[0], sizes[1] + 1, sizes[2] + 2)
                    window = wide[:, : sizes[1], 1 : sizes[2] + 1]
                    for out in (torch.zeros(sizes), window):
                        as_bytes = out.unsqueeze(-1).view(torch.uint8)
                        read_box(reader, tensor, tensor.shape, box, as_bytes, room)
                        assert torch.equal(out, values[tuple(slice(*span) for span in box)])
                    assert wide.count_nonzero() == window.count_nonzero()
