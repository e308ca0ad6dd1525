"""Torch files made to harm: each is one clear error, and takes neither time nor memory."""

import io
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from mergeengine.checkpoints import open_checkpoint
from mergeengine.checkpoints.reading import opened
from mergeengine.errors import CheckpointError

MAGIC = 0x1950A86A20F9469CFC6C
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n%sX\x03\x00\x00\x00cpu%stQ"
HOOKS = b"\x89ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + data


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    numel: int = 4,
    offset: int = 0,
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
    key: bytes = text("0"),
) -> bytes:
    storage = STORAGE % (key, number(numel))
    return (
        REBUILD
        + b"("
        + storage
        + number(offset)
        + numbers(shape)
        + numbers(strides)
        + HOOKS
        + b"tR"
    )


def state(*items: bytes) -> bytes:
    """A pickle of a dict with these keys and values, one after the other."""
    return b"\x80\x02}(" + b"".join(items) + b"u."


def archive(pickled: bytes, records: dict[str, bytes] | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as out:
        for name, data in {
            "data.pkl": pickled,
            **(records or {"data/0": bytes(16)}),
            "version": b"3\n",
        }.items():
            out.writestr(f"archive/{name}", data)
    return stream.getvalue()


def legacy(
    pickled: bytes,
    storages: bytes = struct.pack("<q", 4) + bytes(16),
    keys: Any = ("0",),
    **system: Any,
) -> bytes:
    facts = {"protocol_version": 1001, "little_endian": True, **system}
    head = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, facts))
    pickled = pickled.replace(b"tQ", b"NtQ")  # of which storage this is a part: of none
    return head + pickled + pickle.dumps(list(keys), 2) + storages


def one(value: bytes) -> bytes:
    return archive(state(text("w"), value))


def global_(module: str, name: str, arguments: bytes = b"X\x04\x00\x00\x00true\x85") -> bytes:
    return f"c{module}\n{name}\n".encode() + arguments + b"R"


def edited(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    assert len(old) == len(new)
    return data.replace(old, new)


GOOD = state(text("w"), tensor())
DIRECTORY = b"PK\x01\x02"


def directory_field(offset: int, form: str, value: int, which: int = 1) -> bytes:
    """A good archive with a field of a record's entry in the directory changed."""
    data = bytearray(archive(GOOD))
    place = -1
    for _ in range(which + 1):
        place = data.index(DIRECTORY, place + 1)
    struct.pack_into(form, data, place + offset, value)
    return bytes(data)


DEEP = 50_000
RUNS_CODE = "which would run code"
DAMAGED = "the pickle in it is damaged"

HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    # What would run.
    "os.system": (lambda: one(global_("posix", "system")), f"'posix.system', {RUNS_CODE}"),
    "eval": (lambda: one(global_("builtins", "eval")), f"'builtins.eval', {RUNS_CODE}"),
    "a method of torch": (lambda: one(global_("torch", "load")), f"'torch.load', {RUNS_CODE}"),
    "a name with dots": (
        lambda: one(global_("torch._utils", "_rebuild_tensor_v2.__globals__")),
        RUNS_CODE,
    ),
    "getattr": (lambda: one(global_("builtins", "getattr")), RUNS_CODE),
    "a call by protocol 4": (
        lambda: one(text("os") + text("system") + b"\x93" + text("true") + b"\x85R"),
        "'os.system'",
    ),
    "a call by INST": (lambda: one(b"(X\x04\x00\x00\x00trueios\nsystem\n"), "'os.system'"),
    "an extension": (lambda: one(b"\x82\x01"), "the opcode EXT1 does not occur in torch files"),
    "a class of TorchScript without its code": (lambda: one(b"c__torch__\nM\n)\x81"), RUNS_CODE),
    "a pickled model's source": (
        lambda: legacy(state(text("w"), b"(X\x06\x00\x00\x00moduleNNNtQ")),
        "a whole pickled model",
    ),
    "a terminal's escape": (lambda: one(global_("\x1b[31m", "x")), "'\\x1b[31m.x'"),
    "a very long name": (lambda: one(global_("m" * 10_000, "x")), "mmmm..."),
    # What claims to be large.
    "a text of an exabyte": (lambda: one(b"\x8d" + struct.pack("<Q", 1 << 60)), DAMAGED),
    "the same, legacy": (
        lambda: legacy(state(text("w"), b"\x8d" + struct.pack("<Q", 1 << 60))),
        DAMAGED,
    ),
    "bytes of an exabyte": (
        lambda: legacy(state(text("w"), b"\x8e" + struct.pack("<Q", 1 << 60))),
        DAMAGED,
    ),
    "a frame of an exabyte": (
        lambda: legacy(b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"}."),
        "is of no tensor",
    ),
    "a memo of 4 billion": (lambda: one(b"Nr\xff\xff\xff\xff"), "there are no weights"),
    "a memo's index in text": (lambda: one(b"Np99999999999999999999\n"), "there are no weights"),
    "a storage of 2**62 elements": (
        lambda: one(tensor(1 << 62)),
        "has 16 bytes, expected were 18446744073709551616",
    ),
    "a shape of 2**62": (
        lambda: one(tensor(4, 0, (1 << 62,), (1,))),
        "reaches to element 4611686018427387903 of a storage of 4",
    ),
    "a product of 2**3968": (
        lambda: one(tensor(4, 0, (1 << 62,) * 64, (0,) * 64)),
        "a tensor of more elements than there can be",
    ),
    "65 dimensions": (lambda: one(tensor(4, 0, (1,) * 65, (1,) * 65)), "a shape that is no tuple"),
    "a number of a million bits": (
        lambda: one(b"\x8b" + struct.pack("<i", 125_000) + b"\x7f" * 125_000),
        "a number of 999999 bits",
    ),
    "a number of a million digits": (lambda: one(b"L" + b"9" * 1_000_000 + b"L\n"), DAMAGED),
    "a directory of 4 GB": (
        lambda: archive(GOOD)[:-10] + struct.pack("<IIH", 0xFFFFFFF0, 0, 0),
        "zip archive is damaged",
    ),
    "a bomb in a record": (
        lambda: archive(
            state(text("x" * 90_000_000), b"N") + bytes(20_000_000),
            compression=zipfile.ZIP_DEFLATED,
        ),
        "'data.pkl' is implausibly large",
    ),
    "dicts that hold each other many times": (
        lambda: archive(
            state(
                *(
                    text("a")
                    + b"}q\x00"
                    + b"".join(
                        b"("
                        + b"".join(text(f"{k}") + b"h" + bytes([n]) for k in range(100))
                        + b"u}"
                        + b"q"
                        + bytes([n + 1])
                        for n in range(20)
                    ),
                )
            )
        ),
        "there are no weights",
    ),
    # What is nested.
    "tuples in tuples": (lambda: one(b")" + b"\x85" * DEEP), "there are no weights"),
    "a tuple in tuples as a key": (
        lambda: archive(state(b")" + b"\x85" * DEEP, tensor())),
        "there are no weights",
    ),
    "lists in lists": (lambda: one(b"](" * DEEP + b"e" * DEEP), "there are no weights"),
    "dicts in dicts": (
        lambda: archive(
            b"\x80\x02"
            + b"".join(b"}" + text("model") for _ in range(DEEP))
            + b"N"
            + b"s" * DEEP
            + b"."
        ),
        "there are no weights",
    ),
    "a dict in itself": (
        lambda: archive(b"\x80\x02}q\x00" + text("model") + b"h\x00s."),
        "there are no weights",
    ),
    "rebuilt from rebuilt": (
        lambda: one(
            b"ctorch._tensor\n_rebuild_from_type_v2\nq\x05N" + b"N" * 9 + b"h\x05NN\x87R" * 3
        ),
        DAMAGED,
    ),
    # What is malformed.
    "nothing": (lambda: b"", DAMAGED),
    "text": (lambda: b"hello world, this is no checkpoint", DAMAGED),
    "zeros": (lambda: bytes(1000), DAMAGED),
    "a pointer of LFS": (
        lambda: b"version https://git-lfs.github.com/spec/v1\n",
        "a pointer of Git LFS",
    ),
    "a web page": (lambda: b"<html><body>not found</body></html>", "a web page"),
    "an HDF5 file": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    "tar": (lambda: bytes(257) + b"ustar\x0000" + bytes(500), "the tar format of torch before"),
    "a pickle of no torch": (lambda: pickle.dumps({"w": 1}, 2), "it has no magic number"),
    "another version": (
        lambda: pickle.dumps(MAGIC, 2) + pickle.dumps(7, 2),
        "a torch file of an unknown version",
    ),
    "another byte order": (lambda: legacy(GOOD, little_endian=False), "a big-endian machine"),
    "a pickle without end": (lambda: archive(GOOD[:-1]), DAMAGED),
    "an empty stack": (lambda: archive(b"\x80\x02R."), DAMAGED),
    "no mark": (lambda: archive(b"\x80\x02u."), DAMAGED),
    "a memo that is empty": (lambda: one(b"h\x09"), "it refers to what is not there"),
    "an unknown opcode": (lambda: one(b"\xff"), DAMAGED),
    "a call of a number": (lambda: one(b"K\x01)R"), "what is called is no function"),
    "a tensor of nothing": (lambda: one(REBUILD + b")R"), DAMAGED),
    "a tensor of texts": (lambda: one(REBUILD + b"(" + text("a") * 6 + b"tR"), "without a storage"),
    "a negative offset": (lambda: one(tensor(offset=-1)), "without a storage or an offset"),
    "a negative stride": (
        lambda: one(tensor(strides=(-1,))),
        "a shape or stride that is no number",
    ),
    "a negative size": (lambda: one(tensor(shape=(-4,))), "a shape or stride that is no number"),
    "true as a size": (
        lambda: one(
            REBUILD
            + b"("
            + STORAGE % (text("0"), number(4))
            + b"K\x00\x88\x85K\x01\x85"
            + HOOKS
            + b"tR"
        ),
        "a shape or stride that is no number",
    ),
    "more sizes than strides": (lambda: one(tensor(shape=(2, 2))), "with more sizes than strides"),
    "a tensor behind its storage": (
        lambda: one(tensor(offset=1)),
        "tensor 'w' reaches to element 4 of a storage of 4",
    ),
    "a storage of another size": (
        lambda: one(tensor(5)),
        "'data/0' has 16 bytes, expected were 20",
    ),
    "a storage of two sizes": (
        lambda: archive(state(text("a"), tensor(), text("b"), tensor(5))),
        "a storage of two sizes",
    ),
    "a storage that is missing": (lambda: one(tensor(key=text("7"))), "it has no record 'data/7'"),
    "a storage out of the folder": (
        lambda: one(tensor(key=text("../../../etc/passwd"))),
        "it has no record",
    ),
    "a key that is a number": (
        lambda: one(tensor(key=b"K\x00")),
        "a storage without type, key or size",
    ),
    "a zip of other things": (
        lambda: archive(b"", {"x": b""}).replace(b"data.pkl", b"data.txt"),
        "not one of torch's",
    ),
    "a compressed storage": (
        lambda: archive(GOOD, compression=zipfile.ZIP_DEFLATED),
        "'data/0' is compressed",
    ),
    "an encrypted record": (lambda: directory_field(8, "<H", 1), "encrypted or on another disk"),
    "another disk": (lambda: directory_field(34, "<H", 3), "encrypted or on another disk"),
    "two records at one place": (lambda: directory_field(42, "<I", 0), "its records overlap"),
    "a record in another": (
        lambda: directory_field(20, "<I", 1 << 20),
        "is compressed, which torch",
    ),
    "a record that is elsewhere": (
        lambda: directory_field(42, "<I", archive(GOOD).index(b"PK\x03\x04", 9) + 1),
        "not where the directory says",
    ),
    "a record behind the end": (lambda: directory_field(42, "<I", 1 << 30), "its records overlap"),
    "big-endian": (
        lambda: archive(GOOD, {"byteorder": b"big", "data/0": bytes(16)}),
        "a big-endian machine",
    ),
    "half a zip": (
        lambda: archive(GOOD)[: len(archive(GOOD)) // 2],
        "zip archive is damaged or truncated",
    ),
    "a local header's long name": (
        lambda: edited(
            archive(GOOD), b"\x0e\x00\x00\x00archive/data/0", b"\xff\xff\xff\xffarchive/data/0"
        ),
        "overlaps the next",
    ),
    "half a legacy file": (lambda: legacy(GOOD)[:-3], "the file is truncated"),
    "more at the end": (lambda: legacy(GOOD) + b"x", "1 bytes at the end belong to no tensor"),
    "no list of storages": (lambda: legacy(GOOD, keys=(1,)), "it does not list its storages"),
    "an empty list of storages": (
        lambda: legacy(GOOD, b"", keys=()),
        "it does not list the storage '0'",
    ),
    "a storage listed twice": (lambda: legacy(GOOD, keys=("0", "0")), "is there twice"),
    "a storage of no tensor": (
        lambda: legacy(GOOD, keys=("1",)),
        "the storage '1' is of no tensor",
    ),
    "another number of elements": (
        lambda: legacy(GOOD, struct.pack("<q", 3) + bytes(16)),
        "has 3 elements, expected were 4",
    ),
    "a negative number of elements": (
        lambda: legacy(GOOD, struct.pack("<q", -4) + bytes(16)),
        "has -4 elements",
    ),
    "too large a storage, legacy": (
        lambda: legacy(state(text("w"), tensor(1 << 61))),
        "the file is truncated",
    ),
}


@contextmanager
def bounded(size: int) -> Iterator[None]:
    """Little time, and memory in proportion to a file of this size, whatever it claims."""
    tracemalloc.start()
    begun = time.process_time()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - begun < 10
    assert peak < (16 << 20) + 50 * min(size, 1 << 20)


def message(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert text.isprintable()
    assert len(text) < len(str(path)) + 500
    return text


def test_the_file_that_all_of_them_are_made_of_is_good(tmp_path: Path) -> None:
    for name, data in {"zip.pt": archive(GOOD), "legacy.pt": legacy(GOOD)}.items():
        (tmp_path / name).write_bytes(data)
        assert open_checkpoint(tmp_path / name).tensors["w"].shape == (4,)
        assert torch.load(tmp_path / name)["w"].shape == (4,)


@pytest.mark.parametrize("case", HOSTILE)
def test_a_malformed_file_is_one_clear_error(case: str, tmp_path: Path) -> None:
    make, reason = HOSTILE[case]
    path = tmp_path / "m.pt"
    path.write_bytes(data := make())
    with bounded(len(data)):
        assert reason in message(path)


def test_modules_that_share_modules_without_end(tmp_path: Path) -> None:
    """A hundred levels of two names each: 2**100 paths to one tensor."""
    levels = b"".join(
        b"c__torch__\nM\n)\x81}("
        + text("a")
        + b"h%c" % n
        + text("b")
        + b"h%c" % n
        + b"ubq%c" % (n + 1)
        for n in range(100)
    )
    pickled = b"\x80\x02c__torch__\nM\n)\x81}" + text("w") + tensor() + b"sbq\x00" + levels + b"."
    path = tmp_path / "m.jit"
    path.write_bytes(archive(pickled, {"constants.pkl": b"\x80\x02).", "data/0": bytes(16)}))
    with bounded(path.stat().st_size):
        assert "nested without end" in message(path)


def small() -> dict[str, Any]:
    wide = torch.arange(24, dtype=torch.float32).view(4, 6)
    return {"a": wide, "b": wide.t(), "c": torch.ones(3, dtype=torch.bfloat16), "n": 1}


def written(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


ZIP = written(small())
LEGACY = written(small(), _use_new_zipfile_serialization=False)
PICKLED = zipfile.ZipFile(io.BytesIO(ZIP)).read("archive/data.pkl")
RECORDS = {
    name: zipfile.ZipFile(io.BytesIO(ZIP)).read(f"archive/{name}") for name in ("data/0", "data/1")
}

changes = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(["set", "delete", "insert", "cut"]),
        st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=4,
)


def changed(data: bytes, edits: list[tuple[float, str, bytes]]) -> bytes:
    for where, kind, new in edits:
        place = int(where * len(data))
        if kind == "set":
            data = data[:place] + new + data[place + len(new) :]
        elif kind == "insert":
            data = data[:place] + new + data[place:]
        elif kind == "delete":
            data = data[:place] + data[place + len(new) :]
        elif where > 0.5:
            data = data[:place]
    return data


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # escapes of texts in protocol 0
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
@settings(max_examples=120, deadline=None)
@given(edits=changes)
def test_a_damaged_file_is_an_error_or_lies_inside_itself(
    tmp_path_factory: pytest.TempPathFactory, kind: str, edits: list[tuple[float, str, bytes]]
) -> None:
    data = {
        "zip": lambda: changed(ZIP, edits),
        "legacy": lambda: changed(LEGACY, edits),
        "pickle": lambda: archive(changed(PICKLED, edits), RECORDS),
    }[kind]()
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(data)
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError as error:
        assert str(error).startswith(str(path))  # noqa: PT017
        return
    with opened(path) as read:
        for leaf in checkpoint.stored():
            assert len(read(leaf.offset, leaf.nbytes)) == leaf.nbytes
