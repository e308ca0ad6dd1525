"""The compiled inner loop of the CPU's workers, where it could be built: see ``native.c``.

It reads, computes and writes a block in pieces that stay in the processor's cache, with the same
bits as the operations of torch in ``execution.kernels``, which do everything it cannot: layouts
that are not flat, reductions, 8-bit floats, other devices, machines without a C compiler.
"""

import ctypes
import os
from ctypes import (
    POINTER,
    Array,
    Structure,
    byref,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_ubyte,
    c_void_p,
)
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

SWITCH = "MERGEENGINE_NATIVE"
"""Environment variable; 0 leaves everything to torch, with the same result."""

INTERFACE = 2  # as in native.c
VECTOR = 2048
STORED = 1 << 20
SHORT = 240
DTYPES = {"bfloat16": 0, "float16": 1, "float32": 2, "float64": 3}
RAW = 4
LOAD = 0
OPERATIONS = {
    "add": 1,
    "sub": 2,
    "mul": 3,
    "div": 4,
    "ge": 5,
    "gt": 6,
    "eq": 7,
    "neg": 8,
    "abs": 9,
    "sqrt": 10,
    "where": 11,
    "to_bfloat16": 12,
    "to_float16": 13,
    "to_float32": 14,
}
_LEVELS = ("plain", "AVX2", "AVX-512")

DONE, CANNOT_READ, ENDS_EARLY, CANNOT_WRITE = range(4)


class Instruction(Structure):
    _fields_ = [(name, c_int32) for name in ("op", "to", "a", "b", "c")]


class Source(Structure):
    _fields_ = [(name, c_int32) for name in ("dtype", "itemsize")]


RESULT = ("dtype", "itemsize", "register", "after", "copy", "start")


class Result(Structure):
    _fields_ = [(name, c_int32) for name in RESULT]


class Program(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("compute", "count", "registers", "source_count")),
        *((name, c_int32) for name in ("results", "reserved")),
        ("instructions", POINTER(Instruction)),
        ("sources", POINTER(Source)),
        ("outputs", POINTER(Result)),
        ("numbers", POINTER(c_double)),
        ("rounded", POINTER(c_float)),
    ]


class Place(Structure):
    _fields_ = [("file", c_int32), ("reserved", c_int32), ("offset", c_int64)]


class Outcome(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("kind", "which", "error", "strange")),
        ("offset", c_int64),
    ]


class Library:
    """The compiled functions; ``level`` is the best of the processor's instructions they use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        loaded = ctypes.CDLL(str(path))
        interface = getattr(loaded, "me_interface", None)
        if interface is None or interface() != INTERFACE:
            raise OSError("it was built from another version of its sources")
        self.level: int = loaded.me_level()
        self._run = loaded.me_merge
        self._run.argtypes = [
            *(POINTER(Program), c_int, POINTER(Place), POINTER(Place)),
            *(POINTER(c_void_p), POINTER(c_void_p), c_void_p, c_int64, c_int64, c_int64),
            *(POINTER(c_ubyte), POINTER(c_double), POINTER(Outcome)),
        ]

    @property
    def name(self) -> str:
        return _LEVELS[self.level]

    def run(
        self,
        program: Program,
        inputs: Array[Place],
        outputs: Array[Place],
        buffers: Array[c_void_p],
        targets: Array[c_void_p],
        registers: int,
        elements: int,
        piece: int,
        chunk: int,
        digests: "Array[c_ubyte] | None",
        sums: "Array[c_double] | None",
        outcome: Outcome,
    ) -> None:
        """``elements`` of every result, ``piece`` at a time; other threads run meanwhile.

        Addresses: ``buffers`` hold a piece of each source, ``registers`` one more than the
        program's. An output whose file is -1 is not written. Without ``digests``, ``targets`` take
        all elements of each result; with them a piece, again and again, and ``digests`` take the
        XXH3-128 (16 bytes) of every ``chunk`` elements of every result, chunk by chunk, where that
        is more than ``SHORT`` bytes. ``sums`` take two numbers of every chunk of every result: see
        ``execution.precision``.
        """
        self._run(
            byref(program),
            self.level,
            inputs,
            outputs,
            buffers,
            targets,
            registers,
            elements,
            piece,
            chunk,
            digests,
            sums,
            byref(outcome),
        )


@cache
def _found() -> Library | str | None:
    """The compiled loop, or why it is not used, or None where there is none."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_native{suffix}")
        if path.exists():
            try:
                return Library(path)
            except (OSError, AttributeError) as error:  # built for another system, or before
                return f"{path}: the compiled loop is not used: {error}"
    return None


def library() -> Library | None:
    """The compiled loop; None where it was not built or is refused, or ``MERGEENGINE_NATIVE=0``."""
    found = _found()
    return found if isinstance(found, Library) and os.environ.get(SWITCH) != "0" else None


def refused() -> str | None:
    """Why a loop that was built is not used (it is older than this package, or for another system),
    and what to do; None where there is none, or nothing is wrong with it."""
    found = _found()
    return f"{found}; install the package again to build it" if isinstance(found, str) else None
