import json
import random
from pathlib import Path

import pytest
from checkpoint_files import entry, safetensors, with_header
from hypothesis import given
from hypothesis import strategies as st
from steps import steps

from mergeengine.checkpoints.header import parse_header, read_header
from mergeengine.errors import CheckpointError
from mergeengine.lazy.stored import Stored, StoredFile

LABEL = "the-file"


def parse(content: bytes) -> tuple[Stored, ...]:
    file = StoredFile(Path("x"), len(content))
    text = read_header(lambda offset, size: content[offset : offset + size], len(content), LABEL)
    return parse_header(text, file, "./x", LABEL)


def test_tensors_come_by_offset_with_absolute_offsets() -> None:
    header = {"b": entry(8, [3], "BF16"), "a": entry(0, [2], "F32"), "scalar": entry(14, [], "U8")}
    content = with_header(header, bytes(15))
    tensors = parse(content)
    start = len(content) - 15
    assert [(t.name, t.offset - start, t.nbytes) for t in tensors] == [
        ("a", 0, 8),
        ("b", 8, 6),
        ("scalar", 14, 1),
    ]
    assert tensors[1].dtype.name == "bfloat16"
    assert tensors[1].source == "./x"


def test_empty_tensors_padding_and_metadata_are_valid() -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "none": entry(0, [0, 7]),
        "one": entry(0, [1]),
        "end": entry(4, [0]),
    }
    content = with_header(json.dumps(header).encode() + b"   ", bytes(4))
    assert {t.name: t.shape for t in parse(content)} == {"none": (0, 7), "one": (1,), "end": (0,)}
    assert parse(with_header({})) == ()


ONE = entry(0, [1])
F4 = {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}


def changed(**change: object) -> bytes:
    return with_header({"w": {**ONE, **change}}, bytes(4))


def without(key: str) -> bytes:
    return with_header({"w": {k: v for k, v in ONE.items() if k != key}}, bytes(4))


MALFORMED = {
    "empty file": (b"", "truncated"),
    "half a length": (b"\x02\0\0", "truncated"),
    "header beyond the end": ((1000).to_bytes(8, "little") + b"{}", "truncated"),
    "header over 100 MB": ((10**8 + 1).to_bytes(8, "little") + b"{}", "not a safetensors file"),
    "header of 2**64 - 1": (b"\xff" * 8 + b"{}", "not a safetensors file"),
    "zip magic": (b"PK\x03\x04" + bytes(100), "truncated"),
    "pickle": (b"\x80\x02}q\x00(X\x05\x00\x00\x00" + bytes(100), "not a safetensors file"),
    "no JSON": (with_header(b"{nonsense}"), "not valid JSON"),
    "empty header": (with_header(b""), "not valid JSON"),
    "not UTF-8": (with_header(b'{"\xff": 1}'), "not UTF-8"),
    "UTF-16": (with_header('{"w": 1}'.encode("utf-16-le")), "not valid JSON"),
    "a list": (with_header(b"[]"), "expected a JSON object, found a list"),
    "a number": (with_header(b"3"), "expected a JSON object, found a number"),
    "null": (with_header(b"null"), "expected a JSON object, found null"),
    "two objects": (with_header(b"{}{}"), "not valid JSON"),
    "nested deeply": (with_header(b'{"w":' + b"[" * 100_000), "nested too deeply"),
    "a number of 10000 digits": (with_header(b'{"w":' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "a tensor twice": (
        with_header(b'{"w": %s, "w": %s}' % ((json.dumps(ONE).encode(),) * 2), bytes(4)),
        "'w' occurs twice",
    ),
    "a key twice": (
        with_header(b'{"w": {"dtype": "F32", "dtype": "F32", "shape": []}}'),
        "'dtype' occurs twice",
    ),
    "an entry that is a list": (with_header({"w": [1, 2]}), "must have exactly dtype, shape"),
    "an entry that is null": (with_header({"w": None}), "must have exactly dtype, shape"),
    "no dtype": (without("dtype"), "must have exactly dtype, shape"),
    "no shape": (without("shape"), "must have exactly dtype, shape"),
    "no offsets": (without("data_offsets"), "must have exactly dtype, shape"),
    "an unknown key": (changed(strides=[1]), "must have exactly dtype, shape"),
    "an unknown dtype": (changed(dtype="F31"), "dtype 'F31', which cannot be merged"),
    "a sub-byte dtype": (with_header({"w": F4}, bytes(1)), "dtype 'F4', which cannot be merged"),
    "a dtype that is a number": (changed(dtype=32), "dtype 32, which cannot be merged"),
    "a dtype that is a list": (changed(dtype=["F32"]), "which cannot be merged"),
    "a negative dim": (changed(shape=[-1]), "shape [-1]"),
    "two negative dims": (changed(shape=[-1, -1]), "shape [-1, -1]"),
    "a huge dim": (changed(shape=[2**64 + 1]), "expected a list of at most 64"),
    "huge dims": (changed(shape=[2**62, 2**62]), "its offsets [0, 4] hold 4"),
    "a huge dim beside zero": (changed(shape=[0, 2**63]), "expected a list of at most 64"),
    "a fractional dim": (changed(shape=[1.0]), "shape [1.0]"),
    "a NaN dim": (changed(shape=[float("nan")]), "shape [nan]"),
    "a true dim": (changed(shape=[True]), "shape [True]"),
    "a text dim": (changed(shape=["1"]), "shape ['1']"),
    "65 dims": (changed(shape=[1] * 65), "expected a list of at most 64"),
    "shape is a number": (changed(shape=1), "shape 1"),
    "shape is an object": (changed(shape={}), "shape {}"),
    "one offset": (changed(data_offsets=[4]), "data_offsets [4]"),
    "three offsets": (changed(data_offsets=[0, 4, 4]), "data_offsets [0, 4, 4]"),
    "offsets backwards": (changed(data_offsets=[4, 0]), "begin not after end"),
    "negative offsets": (changed(data_offsets=[-4, 0]), "data_offsets [-4, 0]"),
    "fractional offsets": (changed(data_offsets=[0.0, 4.0]), "data_offsets [0.0, 4.0]"),
    "huge offsets": (changed(data_offsets=[0, 2**70]), "begin not after end"),
    "offsets of text": (changed(data_offsets="04"), "data_offsets '04'"),
    "too few bytes for the shape": (changed(shape=[2]), "takes 8 bytes, but its offsets"),
    "too many bytes for the shape": (changed(shape=[]), None),
    "beyond the end": (with_header({"w": entry(0, [100])}, bytes(4)), "truncated"),
    "a hole at the beginning": (with_header({"w": entry(4, [1])}, bytes(8)), "follows a hole"),
    "a hole": (with_header({"v": ONE, "w": entry(8, [1])}, bytes(12)), "'w' follows a hole"),
    "the same bytes twice": (with_header({"v": ONE, "w": ONE}, bytes(4)), "'w' overlaps"),
    "overlapping": (
        with_header({"v": entry(0, [2]), "w": entry(4, [2])}, bytes(12)),
        "'w' overlaps the one before it",
    ),
    "bytes at the end": (with_header({"w": ONE}, bytes(5)), "1 bytes at the end belong to no"),
    "bytes and no tensor": (with_header({}, bytes(3)), "3 bytes at the end belong to no tensor"),
    "metadata of numbers": (with_header({"__metadata__": {"a": 1}}), "names to strings"),
    "metadata is text": (with_header({"__metadata__": "pt"}), "names to strings"),
    "no name": (with_header({"": ONE}, bytes(4)), "'' is not a usable tensor name"),
    "a newline in the name": (with_header({"a\nb": ONE}, bytes(4)), "not a usable tensor name"),
    "a terminal escape": (with_header({"\x1b[2J": ONE}, bytes(4)), "not a usable tensor name"),
    "half a surrogate": (with_header({"\ud800": ONE}, bytes(4)), "not a usable tensor name"),
    "text turned round": (with_header({"a\u202eb": ONE}, bytes(4)), "not a usable tensor name"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_header_is_refused_with_a_reason(case: str) -> None:
    content, reason = MALFORMED[case]
    if reason is None:
        assert parse(content)[0].shape == ()
        return
    with pytest.raises(CheckpointError) as caught:
        parse(content)
    message = str(caught.value)
    assert message.startswith(f"{LABEL}: ")
    assert reason in message
    assert message.isprintable()
    assert len(message) < 500


def test_a_truncated_file_says_how_much_is_there_and_the_way_out() -> None:
    content = with_header({"w": entry(0, [100])}, bytes(300))
    with pytest.raises(CheckpointError) as caught:
        parse(content)
    assert str(caught.value) == (
        f"{LABEL}: the file is truncated: {len(content) + 100} bytes expected, {len(content)} "
        "bytes there; copy or download it again"
    )


VALID = safetensors({"w": ("F32", [2, 3]), "v": ("BF16", [4]), "none": ("I64", [0])})


def test_every_truncation_is_noticed() -> None:
    assert len(parse(VALID)) == 3
    for length in range(len(VALID)):
        with pytest.raises(CheckpointError):
            parse(VALID[:length])


@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=6))
def test_mutated_bytes_give_tensors_inside_the_file_or_an_error(
    mutations: list[tuple[int, int]],
) -> None:
    content = bytearray(VALID)
    for position, byte in mutations:
        content[position] = byte
    _tensors_inside_or_error(bytes(content))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4"]) | _JSON,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | _JSON,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | _JSON,
    }
)


@given(st.dictionaries(st.text(max_size=4), _ENTRY | _JSON, max_size=4), st.integers(0, 60))
def test_any_json_gives_tensors_inside_the_file_or_an_error(
    header: dict[str, object], data: int
) -> None:
    _tensors_inside_or_error(with_header(header, bytes(data)))


def _tensors_inside_or_error(content: bytes) -> None:
    try:
        tensors = parse(content)
    except CheckpointError:
        return
    assert sum(t.nbytes for t in tensors) <= len(content)
    assert all(8 <= t.offset <= len(content) - t.nbytes for t in tensors)


def test_deep_nesting_is_an_error_at_every_depth() -> None:
    for depth in random.Random(0).sample(range(10, 3000), 40):
        nested = b"[" * depth + b"]" * depth
        for header in (b'{"w": %s}', b'{"w": {"dtype": %s, "shape": [], "data_offsets": [0, 4]}}'):
            with pytest.raises(CheckpointError):
                parse(with_header(header % nested, bytes(4)))


def test_a_header_takes_so_much_work_for_each_tensor_and_no_more() -> None:
    def work(count: int) -> int:
        names = [f"model.layers.{i % 100}.mlp.experts.{i}.w.weight" for i in range(count)]
        entries = {name: entry(i * 24, [2, 3]) for i, name in enumerate(names)}
        content = with_header(entries, bytes(count * 24))
        return steps(lambda: parse(content))

    assert (work(20_000) - work(10_000)) / 10_000 <= 48  # 46
