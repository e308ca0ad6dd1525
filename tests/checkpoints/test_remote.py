"""Models at URLs: what is asked of a server, what its troubles become, and what is never told."""

import builtins
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from checkpoint_files import safetensors
from remote_stand_in import StandInServer, Trouble

from mergeengine.checkpoints import remote
from mergeengine.checkpoints.checkpoint import open_checkpoint
from mergeengine.checkpoints.reading import opened_file
from mergeengine.errors import CheckpointError, InputChangedError
from mergeengine.lazy.stored import RemotePath

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
FIRST, SECOND = {"a.w": ("F32", [300, 200])}, {"b.w": ("BF16", [10]), "c.w": ("F32", [0])}
WHOLE = {
    "config.json": b'{"model_type": "toy"}',
    "model.safetensors": safetensors({**FIRST, **SECOND}),
    "tokenizer.json": b"{}",
    "LICENSE": b"mine",
}
SHARDED = {
    "config.json": b'{"model_type": "toy"}',
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a.w": A, "b.w": B, "c.w": B}}
    ).encode(),
    A: safetensors(FIRST),
    B: safetensors(SECOND),
}


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def put(place: Any, folder: str, files: dict[str, bytes]) -> str:
    """The files in a folder of a store; its URL."""
    for name, content in files.items():
        if isinstance(place, StandInServer):
            place.files[f"{folder}/{name}"] = content
        else:
            place.pipe(f"/{folder}/{name}", content)
    return f"{place.url}/{folder}" if isinstance(place, StandInServer) else f"memory://{folder}"


def on_disk(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("files", [WHOLE, SHARDED], ids=["whole", "sharded"])
@pytest.mark.parametrize("store", ["web", "memory"])
def test_it_is_what_the_local_model_is(
    store: str, files: dict[str, bytes], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    local = open_checkpoint(on_disk(tmp_path / "m", files))
    url = put(request.getfixturevalue(store), "some/m", files)
    found = open_checkpoint(url + "/")
    assert str(found).rstrip("/") == url
    assert found.config == local.config
    assert found.companions() == local.companions()
    assert (found.folder, found.revision) == (None, None)
    assert list(found.tensors) == list(local.tensors)
    for name, tensor in found.tensors.items():
        here = local.tensors[name]
        assert (tensor.shape, tensor.dtype, tensor.offset) == (
            here.shape,
            here.dtype,
            here.offset,
        )
        with opened_file(tensor.file) as read, opened_file(here.file) as read_here:
            assert read(tensor.offset, tensor.nbytes) == read_here(here.offset, here.nbytes)
    for name in found.companions():
        copy = found.companion(name)
        assert copy is not None
        assert copy.read_bytes() == files[name]
    assert found.companion("nothing.json") is None
    assert found.missing_files(found.files) == ()


def test_a_single_file_and_a_tokenizer_alone(web: StandInServer, memory: Any) -> None:
    for store in (web, memory):
        url = put(store, "m", WHOLE)
        assert list(open_checkpoint(f"{url}/model.safetensors").tensors) == ["a.w", "b.w", "c.w"]
        alone = put(store, "t", {"tokenizer.json": b"{}"})
        assert open_checkpoint(alone, weights="none").companions() == ("tokenizer.json",)


def test_few_requests(web: StandInServer) -> None:
    """One for a file's size and one for its header; no more than the header of large files."""
    large = {f"layers.{n}.w": ("F32", [100, 1000]) for n in range(50)}
    url = put(web, "m", {"model.safetensors": safetensors(large)})
    found = open_checkpoint(url)
    assert [(method, size) for method, _, size in web.log] == [
        ("HEAD", 0),  # is it there?
        ("HEAD", 0),  # as it is now
        ("GET", 65536),
    ]
    web.log.clear()
    found.fingerprint()
    assert sum(size for *_, size in web.log) < 10_000
    assert len(web.log) <= 4
    url = put(web, "n", {"model.safetensors": safetensors({"x" * 70_000: ("F32", [20_000])})})
    web.log.clear()
    open_checkpoint(f"{url}/model.safetensors")
    assert [method for method, *_ in web.log] == ["HEAD", "GET", "GET"]


def test_the_fingerprint_is_of_the_content_and_the_version(web: StandInServer, memory: Any) -> None:
    url = put(web, "m", WHOLE)
    first = open_checkpoint(url).fingerprint()
    assert first.startswith("xxh3:")
    assert open_checkpoint(url).fingerprint() == first
    web.etags["m/model.safetensors"] = '"another"'
    assert open_checkpoint(url).fingerprint() != first
    web.etags.clear()
    put(web, "m", {"model.safetensors": safetensors({**FIRST, **SECOND}, fill=9)})
    web.etags["m/model.safetensors"] = web.etag("m/model.safetensors")
    assert open_checkpoint(url).fingerprint() != first


TROUBLES = {
    "500": Trouble(500),
    "503": Trouble(503),
    "429": Trouble(429, {"Retry-After": "0"}),
    "408": Trouble(408),
    "broken off": Trouble(sent=100),
    "nothing sent": Trouble(sent=0),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_that_passes(web: StandInServer, trouble: str) -> None:
    url = put(web, "m", WHOLE)
    web.troubles["m/model.safetensors"] = [TROUBLES[trouble]] * (remote.ATTEMPTS - 1)
    assert len(open_checkpoint(url).tensors) == 3
    assert not web.troubles["m/model.safetensors"]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_that_does_not_pass(web: StandInServer, trouble: str) -> None:
    url = put(web, "m", WHOLE)
    web.troubles["m/model.safetensors"] = [TROUBLES[trouble]] * 100
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(url)
    text = str(raised.value)
    assert text.startswith(f"{url}/model.safetensors: bytes 0 to ")
    assert "could not be read in 5 attempts" in text
    assert "run the same command again" in text
    assert len(web.troubles["m/model.safetensors"]) == 100 - remote.ATTEMPTS


def test_the_server_says_how_long_to_wait(
    web: StandInServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(remote, "_PAUSE", 0.5)
    url = put(web, "m", WHOLE)
    web.troubles["m/model.safetensors"] = [
        Trouble(429, {"Retry-After": "7"}),
        Trouble(503, {"Retry-After": "100000"}),
        Trouble(500),
        Trouble(500),
    ]
    open_checkpoint(url)
    assert pauses[:2] == [7, 60]
    assert 1 <= pauses[2] <= 3
    assert 2 <= pauses[3] <= 6


def test_a_server_without_ranges_is_not_asked_twice(web: StandInServer) -> None:
    """What it sends instead is not kept: the beginning is read, and no more than that."""
    url = put(web, "m", {"model.safetensors": safetensors({"x": ("F32", [3_000_000])})})
    web.ignores_ranges = True
    found = open_checkpoint(url)
    with pytest.raises(CheckpointError, match=r"does not send parts of a file.*download the model"):
        found.fingerprint()
    assert sum(method == "GET" for method, *_ in web.log) == 2


def test_a_server_without_head(web: StandInServer) -> None:
    url = put(web, "m", WHOLE)
    web.has_head = False
    assert len(open_checkpoint(url).tensors) == 3


@pytest.mark.parametrize("ignores_conditions", [False, True])
def test_what_changes_is_noticed(web: StandInServer, ignores_conditions: bool) -> None:
    web.ignores_conditions = ignores_conditions
    url = put(web, "m", WHOLE)
    (file,) = open_checkpoint(url).files
    assert isinstance(file.path, RemotePath)
    remote.check_unchanged(file)
    web.etags["m/model.safetensors"] = '"another"'
    if not ignores_conditions:
        with pytest.raises(InputChangedError, match="changed since its header was read"):
            remote.read_range(file.path, 0, 100, file.size)
    with pytest.raises(InputChangedError, match="changed while it was being read"):
        remote.check_unchanged(file)
    web.etags.clear()
    web.files["m/model.safetensors"] = web.files["m/model.safetensors"][:150_000]
    web.etags["m/model.safetensors"] = file.path.version
    with pytest.raises(InputChangedError, match=r"ends at byte 150000, although .* announced"):
        remote.read_range(file.path, 100_000, 200_000, file.size)


def test_an_object_that_changes_in_a_store(memory: Any) -> None:
    url = put(memory, "m", WHOLE)
    (file,) = open_checkpoint(url).files
    remote.check_unchanged(file)
    put(memory, "m", WHOLE)
    with pytest.raises(InputChangedError, match="changed while it was being read"):
        remote.check_unchanged(file)
    memory.rm("/m/model.safetensors")
    with pytest.raises(CheckpointError, match="there is no such file"):
        remote.check_unchanged(file)


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({}, "has no weights: expected model.safetensors, model.safetensors.index.json"),
        ({"config.json": b"{}"}, "found 'config.json'"),
        ({"adapter_config.json": b"{}"}, "is an adapter"),
        ({**SHARDED, B: b""}, "the file is truncated"),
        ({**WHOLE, "model.safetensors": b"x" * 100}, "not a safetensors file"),
        ({**WHOLE, "config.json": b"["}, "config.json: not valid JSON"),
    ],
)
def test_what_is_no_model(web: StandInServer, files: dict[str, bytes], text: str) -> None:
    url = put(web, "m", files)
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(url)
    assert text in str(raised.value)
    assert str(raised.value).startswith(url)


def test_a_missing_shard_or_folder(web: StandInServer, memory: Any) -> None:
    incomplete = {name: content for name, content in SHARDED.items() if name != B}
    with pytest.raises(CheckpointError, match=rf"/m/{B}: there is no such file"):
        open_checkpoint(put(web, "m", incomplete))
    with pytest.raises(CheckpointError, match=rf"1 of the 2 files .* are missing: '{B}'"):
        open_checkpoint(put(memory, "m", incomplete))
    with pytest.raises(CheckpointError, match="there is no such folder, or it is empty"):
        open_checkpoint("memory://nowhere")
    for place in (web.url, "memory://m"):
        with pytest.raises(CheckpointError, match="there is no such file"):
            open_checkpoint(f"{place}/none.safetensors")


def test_nobody_answers(web: StandInServer) -> None:
    url = put(web, "m", WHOLE)
    web.stop()
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(url)
    assert "could not be read in 5 attempts" in str(raised.value)


def test_offline() -> None:
    with pytest.raises(CheckpointError, match="offline mode is on: download the model"):
        open_checkpoint("memory://m", offline=True)


def test_a_signature_is_sent_and_never_told(web: StandInServer) -> None:
    url = put(web, "m", WHOLE)
    web.secret = "sig=GEHEIM&expires=1"
    signed = f"{url}/model.safetensors?{web.secret}"
    found = open_checkpoint(signed)
    assert len(found.tensors) == 3
    told = [repr(found), str(found), repr(found.files), str(found.identity()), repr(found.tensors)]
    assert found.files[0].path.name == "model.safetensors"
    web.secret = "sig=NEW"
    for troubles in ([], [Trouble(500)] * 100):
        web.troubles["m/model.safetensors"] = list(troubles)
        with pytest.raises(CheckpointError) as raised:
            open_checkpoint(signed)
        told.append(str(raised.value))
    assert "access is refused (HTTP 403 Forbidden): check the store's credentials" in told[-2]
    assert all("GEHEIM" not in text for text in told), told
    assert f"{url}/model.safetensors?..." in told[-1]


def test_a_signature_is_sent_as_it_was_written(web: StandInServer) -> None:
    url = put(web, "m", WHOLE)
    web.secret = "sig=a%2Fb%2B%3d&t=1:2"
    assert open_checkpoint(f"{url}/model.safetensors?{web.secret}").tensors


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each missing package is named, with the command that brings it."""
    real = builtins.__import__

    def without(*names: str) -> None:
        def importing(name: str, *args: Any, **kwargs: Any) -> Any:
            if name.partition(".")[0] in names:
                raise ImportError(f"No module named {name!r}")
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", importing)

    for missing, url in [("fsspec", "memory://m"), ("aiohttp", "http://host/m")]:
        remote._system.cache_clear()
        without(missing)
        with pytest.raises(CheckpointError) as raised:
            open_checkpoint(url)
        assert str(raised.value).startswith(f"{url}: reading this takes a package")
        assert f"No module named '{missing}'" in str(raised.value)
        assert "pip install 'mergeengine[remote]'" in str(raised.value)


def test_schemes_nobody_knows() -> None:
    with pytest.raises(CheckpointError, match="no file system is known for 'gopher'"):
        open_checkpoint("gopher://host/m")
