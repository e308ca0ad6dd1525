import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_files import safetensors, write_json, write_sharded
from hypothesis import given
from hypothesis import strategies as st

from mergeengine.checkpoints import open_checkpoint
from mergeengine.checkpoints.config import contradictions
from mergeengine.errors import CheckpointError

INDEX = "model.safetensors.index.json"
A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDS = {B: {"head": ("F32", [2])}, A: {"b": ("F32", [2, 2]), "a": ("BF16", [3])}}
ONE = {"w": ("F32", [2])}


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    return str(caught.value)


def test_a_sharded_folder_is_read_in_file_order(tmp_path: Path) -> None:
    write_sharded(tmp_path, SHARDS, metadata={"total_size": 1})
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.tensors) == ["b", "a", "head"]
    assert [file.path for file in checkpoint.files] == [tmp_path / A, tmp_path / B]
    assert checkpoint.tensors["head"].file == checkpoint.files[1]
    assert checkpoint.config is None


def test_the_single_file_comes_before_an_index_and_nothing_else_counts(tmp_path: Path) -> None:
    write_sharded(tmp_path, SHARDS)
    (tmp_path / "model.safetensors").write_bytes(safetensors(ONE))
    (tmp_path / "consolidated.safetensors").write_bytes(safetensors({"other": ("F32", [1])}))
    (tmp_path / "training_args.bin").write_bytes(b"\x80\x02.")
    assert list(open_checkpoint(tmp_path).tensors) == ["w"]


def test_a_single_file_is_a_checkpoint_without_config(tmp_path: Path) -> None:
    (tmp_path / "any.safetensors").write_bytes(safetensors(ONE))
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    checkpoint = open_checkpoint(tmp_path / "any.safetensors")
    assert (checkpoint.config, checkpoint.folder) == (None, None)
    assert checkpoint.companions() == ()
    assert checkpoint.companion("config.json") is None
    assert checkpoint.missing_files(checkpoint.files) == ()


def index(value: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / A).write_bytes(safetensors(ONE))
        write_json(folder / INDEX, value)

    return write


def files(**content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, data in content.items():
            (folder / name.replace("__", ".")).write_bytes(data)

    return write


def text_index(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / INDEX).write_text(text) and None


def shards(
    named: dict[str, dict[str, tuple[str, list[int]]]], weight_map: dict[str, str]
) -> Callable[[Path], None]:
    return lambda folder: write_sharded(folder, named, weight_map=weight_map)


MALFORMED: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (
        files(),
        "has no weights: expected model.safetensors, model.safetensors.index.json, or pytorch_",
    ),
    "only other files": (files(readme__md=b"", notes__txt=b""), "found 'notes.txt', 'readme.md'"),
    "an empty torch file": (
        files(pytorch_model__bin=b""),
        "pytorch_model.bin: the pickle in it is",
    ),
    "an empty torch index": (
        files(pytorch_model__bin__index__json=b"{}"),
        "pytorch_model.bin.index.json: expected a weight_map",
    ),
    "a torch index of safetensors": (
        files(pytorch_model__bin__index__json=b'{"weight_map": {"w": "a.safetensors"}}'),
        "expected the plain name of a .bin file",
    ),
    "only what a trainer leaves": (
        files(training_args__bin=b"", optimizer__pt=b"", scheduler__pt=b"", rng_state_0__pth=b""),
        "has no weights: expected model.safetensors",
    ),
    "another torch file": (
        files(training_args__bin=b"", consolidated__pth=b""),
        "name the file itself (there are 'consolidated.pth')",
    ),
    "GGUF": (files(model__gguf=b"GGUF"), "only as GGUF ('model.gguf')"),
    "an adapter": (
        files(adapter_config__json=b"{}", adapter_model__safetensors=b""),
        "is an adapter (adapter_config.json)",
    ),
    "another file name": (files(other__safetensors=b""), "name the file itself (there are 'other"),
    "index: no JSON": (text_index("{"), f"{INDEX}: not valid JSON"),
    "index: a list": (text_index("[]"), f"{INDEX}: expected a JSON object"),
    "index: a tensor twice": (
        text_index('{"weight_map": {"w": "a.safetensors", "w": "b.safetensors"}}'),
        "'w' occurs twice",
    ),
    "index: no weight_map": (index({}), "expected a weight_map"),
    "index: an empty weight_map": (index({"weight_map": {}}), "expected a weight_map"),
    "index: weight_map is a list": (index({"weight_map": ["w"]}), "expected a weight_map"),
    "index: a file that is a number": (index({"weight_map": {"w": 3}}), "said to lie in 3"),
    "index: a parent folder": (
        index({"weight_map": {"w": "../model.safetensors"}}),
        "'w' is said to lie in '../model.safetensors': expected the plain name",
    ),
    "index: an absolute path": (
        index({"weight_map": {"w": "/etc/x.safetensors"}}),
        "expected the plain name",
    ),
    "index: a subfolder": (
        index({"weight_map": {"w": "sub/x.safetensors"}}),
        "expected the plain name",
    ),
    "index: a backslash": (
        index({"weight_map": {"w": "..\\x.safetensors"}}),
        "expected the plain name",
    ),
    "index: a drive": (index({"weight_map": {"w": "C:x.safetensors"}}), "expected the plain name"),
    "index: a hidden file": (
        index({"weight_map": {"w": ".x.safetensors"}}),
        "expected the plain name",
    ),
    "index: no safetensors": (index({"weight_map": {"w": "w.bin"}}), "expected the plain name"),
    "index: a NUL": (
        index({"weight_map": {"w": "\0.safetensors"}}),
        "expected the plain name",
    ),
    "index: a tensor without name": (index({"weight_map": {"": A}}), "not a usable tensor name"),
    "index: missing shards": (
        index({"weight_map": {"w": A, "x": B, "y": "c.safetensors"}}),
        f"2 of the 3 files that {INDEX} names are missing: 'c.safetensors', '{B}'",
    ),
    "index: a tensor that no file has": (
        index({"weight_map": {"w": A, "ghost": A}}),
        "named by the index, but in no file: 'ghost'",
    ),
    "index: an unnamed tensor": (
        shards(SHARDS, {"b": A, "head": B}),
        "in a file, but not named by the index: 'a'",
    ),
    "index: another file": (
        shards(SHARDS, {"a": B, "b": A, "head": A}),
        "in another file than the index says: 'a', 'head'",
    ),
    "a tensor in two files": (
        shards({A: ONE, B: {**ONE, "v": ("F32", [1])}}, {"w": A, "v": B}),
        f"the tensor 'w' is in two files, {A} and {B}",
    ),
    "no tensor at all": (files(model__safetensors=safetensors({})), "there is not one tensor"),
    "a malformed file": (
        files(model__safetensors=b"{"),
        "model.safetensors: the file is truncated",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_folder_that_is_no_checkpoint_is_refused_with_a_reason(case: str, tmp_path: Path) -> None:
    write, reason = MALFORMED[case]
    write(tmp_path)
    message = refused(tmp_path)
    assert reason in message
    assert str(tmp_path) in message


@pytest.mark.parametrize("name", ["m.onnx", "m.gguf", "m.h5", "m.msgpack", "m.npz", "m"])
def test_a_single_file_of_another_format_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    message = refused(tmp_path / name)
    assert any(word in message for word in ("use ", "load it with", "expected a file of weights"))


@pytest.mark.parametrize("text", ["~nobody-of-this-name/m", "/" + "x" * 5000, "./a\0b"])
def test_a_path_that_cannot_be_is_an_error(text: str) -> None:
    with pytest.raises(CheckpointError):
        open_checkpoint(text)


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    assert f"there is no folder or file {tmp_path}/none" in refused(tmp_path / "none")


@pytest.mark.parametrize(
    ("config", "reason"),
    [("{", "config.json: not valid JSON"), ("3", "config.json: expected a JSON object")],
)
def test_a_malformed_config_is_named(config: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors(ONE))
    (tmp_path / "config.json").write_text(config)
    assert reason in refused(tmp_path)


SMALL = {
    INDEX: b'{"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}',
    "config.json": b'{"vocab_size": 3, "text_config": {"tie": [1, null]}}',
    "a.safetensors": safetensors(ONE),
    "b.safetensors": safetensors({"v": ("BF16", [3])}),
}


@given(
    st.sampled_from(sorted(SMALL)),
    st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=3)), min_size=1, max_size=4),
)
def test_mutated_bytes_give_a_checkpoint_or_an_error(
    name: str, mutations: list[tuple[int, bytes]]
) -> None:
    content = bytearray(SMALL[name])
    for position, replacement in mutations:
        content[position % len(content) : position % len(content) + 1] = replacement or b""
        content = content or bytearray(b" ")
    with tempfile.TemporaryDirectory() as folder:
        for file, data in {**SMALL, name: bytes(content)}.items():
            (Path(folder) / file).write_bytes(data)
        try:
            checkpoint = open_checkpoint(Path(folder))
        except CheckpointError:
            return
        assert sum(tensor.nbytes for tensor in checkpoint.tensors.values()) < 1000
        assert contradictions(checkpoint.config, checkpoint.tensors) is not None
        assert checkpoint.fingerprint().startswith("xxh3:")


class TestLinks:
    @pytest.fixture
    def outside(self, tmp_path: Path) -> Path:
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "model.safetensors").write_bytes(safetensors(ONE))
        (tmp_path / "outside" / "secret").write_text("{}")
        return tmp_path / "outside"

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "folder").mkdir()
        return tmp_path / "folder"

    def test_weights_outside_the_folder_are_refused(self, folder: Path, outside: Path) -> None:
        (folder / "model.safetensors").symlink_to("../outside/model.safetensors")
        assert "outside its model's folder" in refused(folder)

    def test_so_are_a_config_and_a_companion(self, folder: Path, outside: Path) -> None:
        (folder / "model.safetensors").write_bytes(safetensors(ONE))
        (folder / "tokenizer.json").symlink_to(outside / "secret")
        checkpoint = open_checkpoint(folder)
        assert checkpoint.companions() == ("tokenizer.json",)
        with pytest.raises(CheckpointError, match="outside its model's folder"):
            checkpoint.companion("tokenizer.json")
        with pytest.raises(CheckpointError, match="outside its model's folder"):
            checkpoint.companion("../outside/secret")
        (folder / "config.json").symlink_to(outside / "secret")
        assert "outside its model's folder" in refused(folder)

    def test_a_chain_of_links_does_not_hide_the_end(self, folder: Path, outside: Path) -> None:
        (folder / "inner").symlink_to(outside / "model.safetensors")
        (folder / "model.safetensors").symlink_to("inner")
        assert "outside its model's folder" in refused(folder)

    def test_links_inside_the_folder_and_to_the_folder_are_fine(
        self, folder: Path, outside: Path
    ) -> None:
        (folder / "model.safetensors").symlink_to("weights.safetensors")
        (folder / "weights.safetensors").write_bytes(safetensors(ONE))
        (folder.parent / "link").symlink_to(folder)
        assert list(open_checkpoint(folder.parent / "link").tensors) == ["w"]
        (folder.parent / "file.safetensors").symlink_to(outside / "model.safetensors")
        assert list(open_checkpoint(folder.parent / "file.safetensors").tensors) == ["w"]

    def test_a_hub_cache_links_to_its_blobs_only(self, tmp_path: Path, outside: Path) -> None:
        repo = tmp_path / "hub" / "models--org--name"
        snapshot = repo / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (repo / "blobs").mkdir()
        (repo / "blobs" / "abc").write_bytes(safetensors(ONE))
        (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
        assert list(open_checkpoint(snapshot).tensors) == ["w"]
        (repo / "blobs" / "evil").symlink_to(outside / "secret")
        (snapshot / "tokenizer.json").symlink_to("../../blobs/evil")
        with pytest.raises(CheckpointError, match="outside its model's folder"):
            open_checkpoint(snapshot).companion("tokenizer.json")

    def test_a_link_to_nothing_and_a_loop(self, folder: Path) -> None:
        (folder / "model.safetensors").symlink_to("nowhere")
        assert "cannot be read" in refused(folder)
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").symlink_to("model.safetensors")
        assert "cannot be read" in refused(folder)

    def test_a_pipe_is_not_opened(self, folder: Path) -> None:
        os.mkfifo(folder / "model.safetensors")
        assert "not a regular file" in refused(folder)

    def test_a_folder_named_like_the_weights_is_none(self, folder: Path) -> None:
        (folder / "model.safetensors").mkdir()
        assert "has no weights" in refused(folder)


def test_companions_are_the_small_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors(ONE))
    for name in ("config.json", "tokenizer.model", "modeling_x.py", "README.md", "LICENSE"):
        (tmp_path / name).write_text("{}")
    for name in ("pytorch_model.bin", "x.gguf", ".hidden", "rust_model.ot", INDEX):
        (tmp_path / name).write_text("{}")
    for name in ("chat_templates/a.jinja", ".git/config", "onnx/model.onnx", "1/2/deep"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.companions() == (
        "LICENSE",
        "README.md",
        "chat_templates/a.jinja",
        "config.json",
        "modeling_x.py",
        "tokenizer.model",
    )
    assert checkpoint.companion("README.md") == tmp_path / "README.md"
    assert checkpoint.companion("vocab.txt") is None
