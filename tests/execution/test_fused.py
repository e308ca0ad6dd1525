"""The compiled loop gives the bits of torch's operations, reads right, and fails in words."""

import os
import struct
from collections.abc import Callable, Sequence
from ctypes import sizeof
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergeengine.compiler.graph import Graph, OutputTensor, compute_dtype
from mergeengine.compiler.schedule import schedule
from mergeengine.errors import CheckpointError, InputChangedError, MergeEngineError
from mergeengine.execution import native
from mergeengine.execution.executor import execute, stream
from mergeengine.execution.fused import FusedRunner
from mergeengine.execution.kernels import torch_dtype
from mergeengine.execution.reader import Reader
from mergeengine.lazy import algebra
from mergeengine.lazy.dtypes import BFLOAT16, BY_NAME, FLOAT16, FLOAT32
from mergeengine.lazy.partition import CHUNK
from mergeengine.lazy.stored import Stored, StoredFile
from mergeengine.lazy.tensor import LazyTensor
from tests.compiled_loop import needs_loop

pytestmark = needs_loop

FLOATS = ("bfloat16", "float16", "float32", "float64")
EXPRESSIONS: dict[str, Callable[[LazyTensor, LazyTensor, LazyTensor], LazyTensor]] = {
    "transfer": lambda t, b, f: t + (f - b),
    "scaled": lambda t, b, f: t + 0.3 * (f - b),
    "two": lambda t, b, f: t + 0.3 * (f - b) + 1.7 * (b - t),
    "quotient": lambda t, b, f: t / (1.0 - f * b),
    "thresholds": lambda t, b, f: (abs(f - b) > 0.1).where(t, -b) * (t >= b) + f.eq(b),
    "roots": lambda t, b, f: abs(t * b).sqrt() + 1e-3 / f,
    "chosen": lambda t, b, f: (f > b).where(0.5, t),
    "shared": lambda t, b, f: (f - b) * (f - b) + t * (f - b),
    "copied": lambda t, b, f: t,
    "numbers": lambda t, b, f: t / (b * 0.0 + 2.0) - (f * 0.0 + 3.0),
    "square": lambda t, b, f: t * t - b * (f + b),
    "kept": lambda t, b, f: (t - b) * t + abs(t),
    "rounded": lambda t, b, f: (
        (t + 0.3 * (f - b)).round_to(BFLOAT16) - f.round_to(FLOAT16) * b.round_to(FLOAT32)
    ),
    "part": lambda t, b, f: t[1:] + (f[1:] - b[1:]),
}


def leaf(path: Path, dtype: str, shape: tuple[int, ...], values: torch.Tensor) -> LazyTensor:
    """A stored tensor that begins at an odd place of its file."""
    raw = values.to(torch_dtype(BY_NAME[dtype])).contiguous()
    path.write_bytes(b"x" * 24 + raw.view(torch.uint8).numpy().tobytes())
    file = StoredFile(path, path.stat().st_size)
    return LazyTensor(algebra.stored(Stored("test", path.name, BY_NAME[dtype], shape, file, 24)))


def values_of(outputs: list[OutputTensor]) -> list[torch.Tensor]:
    planned = schedule(Graph(tuple(outputs)), memory=1 << 30, workers=1)
    with Reader() as reader:
        # As bytes: a copy of booleans would make proper ones of them.
        return [values.view(torch.uint8).clone() for _, _, values in stream(planned, reader)]


def bits(values: torch.Tensor) -> bytes:
    return values.view(torch.uint8).numpy().tobytes()


def both(outputs: list[OutputTensor], monkeypatch: pytest.MonkeyPatch) -> list[list[bytes]]:
    """By the loop, which must really have been used, and by torch."""
    used = []
    run = FusedRunner._run
    with monkeypatch.context() as patch:
        patch.setattr(FusedRunner, "_run", lambda *a: used.append(1) or run(*a))
        ours = values_of(outputs)
    assert len(used) == len(ours)
    with monkeypatch.context() as patch:
        patch.setenv(native.SWITCH, "0")
        theirs = values_of(outputs)
    assert len(used) == len(ours)
    return [[bits(block) for block in blocks] for blocks in (ours, theirs)]


def random_bits(dtype: str, count: int, seed: int) -> torch.Tensor:
    """Every pattern may come: numbers of all sizes, subnormal ones, infinities, NaNs."""
    generator = torch.Generator().manual_seed(seed)
    size = torch_dtype(BY_NAME[dtype]).itemsize
    raw = torch.randint(0, 256, (count * size,), dtype=torch.uint8, generator=generator)
    return raw.view(torch_dtype(BY_NAME[dtype]))


@pytest.mark.parametrize("level", range(3))
@settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(sorted(EXPRESSIONS)),
    inputs=st.tuples(*[st.sampled_from(FLOATS)] * 3),
    output=st.sampled_from(FLOATS),
    compute=st.sampled_from(["auto", "float32", "float64"]),
    rows=st.integers(2, 70),
    columns=st.sampled_from([1, 3, 64, 2047, 4099]),
    seed=st.integers(0, 1000),
    wild=st.booleans(),
)
def test_the_bits_of_torch(
    level: int,
    name: str,
    inputs: tuple[str, str, str],
    output: str,
    compute: str,
    rows: int,
    columns: int,
    seed: int,
    wild: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = native.library()
    assert loop is not None
    if level > native.Library(loop.path).level:
        pytest.skip("this processor does not have these instructions")
    monkeypatch.setattr(loop, "level", level)
    shape = (rows, columns)
    leaves = []
    for number, dtype in enumerate(inputs):
        if wild:
            values = random_bits(dtype, rows * columns, 3 * seed + number)
        else:
            generator = torch.Generator().manual_seed(3 * seed + number)
            values = torch.randn(rows * columns, generator=generator, dtype=torch.float64)
        leaves.append(leaf(tmp_path / f"{seed}-{number}", dtype, shape, values))
    node = EXPRESSIONS[name](*leaves).node
    if name == "copied":
        output = inputs[0]
    dtype = BY_NAME[output]
    ours, theirs = both(
        [OutputTensor("out", dtype, compute_dtype(dtype, compute), node)], monkeypatch
    )
    assert ours == theirs


def test_every_16_bit_pattern_and_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding at, just below and just above every half way between two 16-bit values."""
    every = torch.arange(1 << 16, dtype=torch.int32)
    as_half = every.to(torch.uint16).view(torch.float16).to(torch.float64)
    as_brain = (every << 16).view(torch.float32).to(torch.float64)
    for name, exact in (("float16", as_half), ("bfloat16", as_brain)):
        middle = (exact + exact.roll(-1)) / 2
        for stored in ("float32", "float64"):
            kind = torch_dtype(BY_NAME[stored])
            values = torch.cat(
                [
                    exact.to(kind),
                    middle.to(kind),
                    *(
                        torch.nextafter(middle.to(kind), torch.full((), way, dtype=kind))
                        for way in (torch.inf, -torch.inf)
                    ),
                ]
            )
            a = leaf(tmp_path / "a", stored, (len(values),), values)
            b = leaf(tmp_path / "b", stored, (len(values),), torch.zeros(len(values)))
            compute = BY_NAME[stored]
            ours, theirs = both(
                [OutputTensor("out", BY_NAME[name], compute, (a + b).node)], monkeypatch
            )
            assert ours == theirs


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_blocks_of_several_pieces(
    extra: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 2 * CHUNK + extra
    leaves = [
        leaf(tmp_path / f"{n}", "bfloat16", (count,), random_bits("bfloat16", count, n))
        for n in range(3)
    ]
    dtype = BY_NAME["bfloat16"]
    outputs = [
        OutputTensor(name, dtype, BY_NAME["float32"], EXPRESSIONS[name](*leaves).node)
        for name in ("scaled", "copied", "part")
    ]
    ours, theirs = both(outputs, monkeypatch)
    assert ours == theirs


def test_copies_of_every_dtype_keep_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, dtype in BY_NAME.items():
        values = random_bits("bfloat16", 1000 * dtype.itemsize // 2, 7).view(torch_dtype(dtype))
        node = leaf(tmp_path / name, name, (len(values),), values).node
        ours, _ = both([OutputTensor("out", dtype, compute_dtype(dtype), node)], monkeypatch)
        assert b"".join(ours) == bits(values)


class Files:
    """A sink of one file for each tensor; what is recorded is kept."""

    def __init__(self, folder: Path, count: int) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        self.paths = [folder / f"out-{number}" for number in range(count)]
        self.files = [os.open(path, flags) for path in self.paths]
        self.digests: dict[tuple[int, int], bytes] = {}

    def is_done(self, tensor: int, chunk: int) -> bool:
        return False

    def write(self, tensor: int, first_chunk: int, data: memoryview, notes: Sequence[str]) -> None:
        raise AssertionError("the loop writes itself")

    def place(self, tensor: int, chunk: int) -> tuple[int, int]:
        return self.files[tensor], 8 + chunk * CHUNK  # of single bytes

    def record(
        self, tensor: int, first_chunk: int, digests: list[bytes], notes: Sequence[str]
    ) -> None:
        self.digests.update(((tensor, first_chunk + n), each) for n, each in enumerate(digests))

    def failed(self, tensor: int, error: OSError) -> MergeEngineError:
        return MergeEngineError(str(error))


@pytest.mark.parametrize("level", range(3))
def test_digests_are_those_of_the_xxhash_package(
    level: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Around every limit of the algorithm, of pieces (2^17 elements) and of chunks."""
    loop = native.library()
    assert loop is not None
    if level > native.Library(loop.path).level:
        pytest.skip("this processor does not have these instructions")
    monkeypatch.setattr(loop, "level", level)
    near = [64, 128, 240, 1024, 2048, 1 << 17, (1 << 17) + 64, CHUNK, 3 * CHUNK, 20 * CHUNK]
    sizes = [0, 1, 17, *(limit + n for limit in near for n in (-1, 0, 1, 63, 65))]
    dtype = BY_NAME["uint8"]
    outputs, contents = [], []
    for size in sizes:
        values = torch.randint(
            0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size)
        )
        node = leaf(tmp_path / f"{size}", "uint8", (size,), values).node
        outputs.append(OutputTensor(str(size), dtype, BY_NAME["float32"], node))
        contents.append(bits(values))
    sink = Files(tmp_path, len(sizes))
    execute(schedule(Graph(tuple(outputs)), memory=1 << 30, workers=2), sink)
    for number, content in enumerate(contents):
        assert sink.paths[number].read_bytes()[8:] == content
        for chunk in range(max(1, -(-len(content) // CHUNK))):
            part = content[chunk * CHUNK : (chunk + 1) * CHUNK]
            assert sink.digests[number, chunk] == xxhash.xxh3_128_digest(part), len(content)


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    names=st.lists(st.sampled_from(sorted(set(EXPRESSIONS) - {"part"})), min_size=1, max_size=6),
    inputs=st.tuples(*[st.sampled_from(FLOATS)] * 3),
    output=st.sampled_from(FLOATS),
    compute=st.sampled_from(["auto", "float32", "float64"]),
    count=st.sampled_from([1, 2047, 5000, 140_000]),
    seed=st.integers(0, 1000),
)
def test_several_results_are_those_of_one_at_a_time(
    names: list[str],
    inputs: tuple[str, str, str],
    output: str,
    compute: str,
    count: int,
    seed: int,
    tmp_path: Path,
) -> None:
    leaves = [
        leaf(tmp_path / f"{seed}-{n}", dtype, (count,), random_bits(dtype, count, 3 * seed + n))
        for n, dtype in enumerate(inputs)
    ]
    dtype = BY_NAME[output]
    tensors = [
        OutputTensor("out", dtype, compute_dtype(dtype, compute), EXPRESSIONS[name](*leaves).node)
        for name in names
    ]
    together = schedule(*(Graph((t,)) for t in tensors), memory=1 << 30, workers=1)
    assert len(together.tensors) == 1
    sinks = [Kept() for _ in names]
    execute(together, *sinks)
    for tensor, sink in zip(tensors, sinks, strict=True):
        assert [sink.data] == [bits(block) for block in values_of([tensor])]


class Kept:
    """A sink in memory, of one block."""

    data = b""

    def is_done(self, tensor: int, chunk: int) -> bool:
        return False

    def write(self, tensor: int, first_chunk: int, data: memoryview, notes: Sequence[str]) -> None:
        self.data = bytes(data)


def test_empty_tensors_and_scalars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in ((0,), (), (1, 1)):
        values = torch.ones(max(0, torch.Size(shape).numel()), dtype=torch.float64)
        leaves = [leaf(tmp_path / f"{n}", "float16", shape, values * n) for n in range(3)]
        dtype = BY_NAME["float16"]
        node = EXPRESSIONS["scaled"](*leaves).node
        ours, theirs = both([OutputTensor("out", dtype, BY_NAME["float32"], node)], monkeypatch)
        assert ours == theirs


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    leaves = [leaf(tmp_path / f"{n}", "float32", (CHUNK,), torch.ones(CHUNK)) for n in range(3)]
    node = EXPRESSIONS["transfer"](*leaves).node
    dtype = BY_NAME["float32"]
    planned = schedule(Graph((OutputTensor("out", dtype, dtype, node),)), memory=1 << 30, workers=1)
    with Reader() as reader:
        reader.acquire(leaves[1].node.stored.file)  # its state is known
        os.truncate(tmp_path / "1", 1000)
        with pytest.raises(InputChangedError, match=r"/1: the file ends at byte 1000"):
            list(stream(planned, reader))


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = (leaf(tmp_path / "a", "float32", (4,), torch.ones(4)) * 2.0).node
    dtype = BY_NAME["float32"]
    planned = schedule(Graph((OutputTensor("out", dtype, dtype, node),)), memory=1 << 30, workers=1)
    unreadable = os.open(tmp_path / "a", os.O_WRONLY)
    with Reader() as reader:
        monkeypatch.setattr(reader, "acquire", lambda file: unreadable)
        monkeypatch.setattr(reader, "release", lambda file: None)
        with pytest.raises(CheckpointError, match=r"/a: cannot be read: Bad file descriptor"):
            list(stream(planned, reader))
    os.close(unreadable)


def test_the_loop_is_of_these_sources() -> None:
    """One that is refused would leave everything to torch, and what is tested here untested."""
    assert native.refused() is None
    assert native.library() is not None


def test_a_loop_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "INTERFACE", native.INTERFACE + 1)
    monkeypatch.setattr(native, "_found", native._found.__wrapped__)
    assert native.library() is None
    said = native.refused()
    assert said is not None
    assert "the compiled loop is not used: it was built from another version" in said
    assert "install the package again" in said


def test_a_file_that_is_no_library_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in EXTENSION_SUFFIXES:
        (tmp_path / f"_native{suffix}").write_text("not a library")
    monkeypatch.setattr(native, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(native, "_found", native._found.__wrapped__)
    assert native.library() is None
    assert "the compiled loop is not used" in (native.refused() or "")


def test_the_structures_are_those_of_the_c_file() -> None:
    """Sizes as the C compiler lays them out on every 64-bit system."""
    pointers = 5 * struct.calcsize("P")
    expected = {"Instruction": 20, "Source": 8, "Result": 24, "Place": 16, "Outcome": 24}
    for name, size in expected.items():
        assert sizeof(getattr(native, name)) == size
    assert sizeof(native.Program) == 24 + pointers
