"""Offsets, shards and headers, checked with the safetensors library itself."""

import json
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from mergeengine.execution.kernels import torch_dtype
from mergeengine.lazy.dtypes import BY_NAME, DType
from mergeengine.output.layout import INDEX, lay_out

DTYPES = [
    BY_NAME[name]
    for name in ("bfloat16", "float16", "float32", "float64", "int64", "int8", "bool", "uint8")
]


@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)), min_size=1
    ),
    st.integers(1, 500),
)
def test_any_layout_is_a_valid_checkpoint(
    kinds: list[tuple[DType, list[int]]], shard_size: int
) -> None:
    described = [(f"t{n}", dtype, tuple(shape)) for n, (dtype, shape) in enumerate(kinds)]
    layout = lay_out(described, shard_size)
    contents = [bytearray(shard.size) for shard in layout.shards]
    for shard, content in zip(layout.shards, contents, strict=True):
        content[: len(shard.header)] = shard.header
    used: list[set[int]] = [set(range(len(shard.header))) for shard in layout.shards]
    for number, tensor in enumerate(layout.tensors):
        assert tensor.name == f"t{number}"
        assert tensor.offset % tensor.dtype.itemsize == 0
        place = set(range(tensor.offset, tensor.offset + tensor.nbytes))
        assert not place & used[tensor.shard]
        used[tensor.shard] |= place
        value = number % 2 if tensor.dtype.name == "bool" else number % 100
        data = torch.full(tensor.shape, value, dtype=torch_dtype(tensor.dtype))
        raw = data.reshape(-1).view(torch.uint8).numpy().tobytes() if data.numel() else b""
        contents[tensor.shard][tensor.offset : tensor.offset + tensor.nbytes] = raw
    assert [len(places) for places in used] == [shard.size for shard in layout.shards]

    from safetensors.torch import load

    loaded = {}
    for content in contents:
        loaded.update(load(bytes(content)))
    for number, (name, dtype, shape) in enumerate(described):
        value = number % 2 if dtype.name == "bool" else number % 100
        assert torch.equal(loaded[name], torch.full(shape, value, dtype=torch_dtype(dtype)))


def test_shards_are_numbered_filled_in_order_and_indexed(tmp_path: Path) -> None:
    bf16 = BY_NAME["bfloat16"]
    layout = lay_out([("a", bf16, (30,)), ("b", bf16, (30,)), ("big", bf16, (90,))], 120)
    assert [shard.name for shard in layout.shards] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    index = layout.index()
    assert index is not None
    document = json.loads(index)
    assert document["metadata"] == {"total_size": 300}
    assert document["weight_map"] == {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00001-of-00002.safetensors",
        "big": "model-00002-of-00002.safetensors",
    }
    path = tmp_path / layout.shards[0].name
    path.write_bytes(layout.shards[0].header.ljust(layout.shards[0].size, b"\0"))
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert sorted(opened.keys()) == ["a", "b"]


def test_one_shard_needs_no_index() -> None:
    layout = lay_out([("a", BY_NAME["float32"], (3,))], 5_000_000_000)
    assert [shard.name for shard in layout.shards] == ["model.safetensors"]
    assert layout.index() is None
    assert INDEX == "model.safetensors.index.json"
