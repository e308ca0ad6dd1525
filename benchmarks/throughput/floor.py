"""The floor: the same bytes read and written with plain system calls, and no arithmetic.

As a process: ``python -m benchmarks.throughput.floor SETTINGS.json REPORT.json``. Threads take
block after block of the files; each preads the three inputs' block into memory of its own, and
pwrites one of them into a preallocated output, or into several. All of it is on disk at the end.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path

_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE


@dataclass(frozen=True, slots=True)
class Settings:
    """One way to do it. ``early``: each block is sent to the disk when it is written, not only
    by the fsync at the end."""

    block: int
    threads: int
    early: bool

    def __str__(self) -> str:
        flush = "write-back begun per block" if self.early else "written back by fsync"
        return f"{self.block >> 10} KiB, {self.threads} threads, {flush}"


def write_job(path: Path, settings: Settings, inputs: list[list[Path]], *outputs: Path) -> None:
    """What the process reads: ``inputs`` are lists of files of equal size, ``outputs`` folders."""
    job = {
        "settings": asdict(settings),
        "inputs": [[str(file) for file in files] for files in inputs],
        "outputs": [str(output) for output in outputs],
    }
    path.write_text(json.dumps(job))


def early_writing_works() -> bool:
    """Whether the C library can start write-back of a range (Linux)."""
    return hasattr(ctypes.CDLL(None), "sync_file_range")


def _copy(settings: Settings, inputs: list[list[Path]], outputs: list[Path]) -> None:
    for output in outputs:
        output.mkdir()
    sizes = [file.stat().st_size for file in inputs[0]]
    blocks = [
        (file, offset, min(settings.block, size - offset))
        for file, size in enumerate(sizes)
        for offset in range(0, size, settings.block)
    ]
    turns = count()  # next() on it is atomic
    start_writing = ctypes.CDLL(None).sync_file_range if settings.early else None
    with ExitStack() as stack:

        def opened(path: Path, flags: int) -> int:
            descriptor = os.open(path, flags, 0o666)
            stack.callback(os.close, descriptor)
            return descriptor

        sources = [[opened(file, os.O_RDONLY) for file in files] for files in inputs]
        made = [
            [opened(output / file.name, os.O_RDWR | os.O_CREAT) for output in outputs]
            for file in inputs[0]
        ]
        for descriptors, size in zip(made, sizes, strict=True):
            for descriptor in descriptors:
                os.posix_fallocate(descriptor, 0, size)

        def work(_: int) -> None:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            buffers = [memoryview(mmap.mmap(-1, settings.block, flags=flags)) for _ in sources]
            while (turn := next(turns)) < len(blocks):
                file, offset, size = blocks[turn]
                for buffer, descriptors in zip(buffers, sources, strict=True):
                    _fill(descriptors[file], buffer[:size], offset)
                for descriptor in made[file]:
                    _write(descriptor, buffers[0][:size], offset)
                    if start_writing is not None:
                        start_writing(
                            descriptor, ctypes.c_int64(offset), ctypes.c_int64(size), _START_WRITING
                        )

        with ThreadPoolExecutor(settings.threads) as pool:
            list(pool.map(work, range(settings.threads)))
        folders = [opened(output, os.O_RDONLY) for output in outputs]
        for descriptor in (*chain.from_iterable(made), *folders):
            os.fsync(descriptor)


def _fill(descriptor: int, buffer: memoryview, offset: int) -> None:
    while buffer:
        done = os.preadv(descriptor, [buffer], offset)
        if not done:
            raise EOFError(f"nothing at byte {offset}")
        buffer, offset = buffer[done:], offset + done


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(descriptor, data, offset)
        data, offset = data[done:], offset + done


def main(job_file: Path, report: Path) -> None:
    job = json.loads(job_file.read_text())
    inputs = [[Path(file) for file in files] for files in job["inputs"]]
    began = time.perf_counter()
    _copy(Settings(**job["settings"]), inputs, [Path(output) for output in job["outputs"]])
    report.write_text(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
