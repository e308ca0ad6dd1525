"""A merge from an object store to this machine: moto's stand-in for S3, through s3fs.

Not part of the `dev` extra, since it brings fifty packages: pip install s3fs 'moto[server]'.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import mergeengine
from mergeengine.checkpoints import remote
from mergeengine.checkpoints.checkpoint import open_checkpoint
from mergeengine.errors import CheckpointError, InputChangedError

s3fs = pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")
pytestmark = pytest.mark.filterwarnings("default")  # of the libraries' own

ROLES = {"target": 0, "base": 1, "ft": 2}


def files(seed: int) -> dict[str, bytes]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"{n}.w": torch.randn(800, 1400, generator=generator) for n in range(3)}
    return {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": save(tensors)}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "GEHEIM")
    monkeypatch.setattr(remote, "_PAUSE", 0.001)
    monkeypatch.chdir(tmp_path)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.makedirs("bucket", exist_ok=True)  # moto keeps what earlier tests made
    for role, seed in ROLES.items():
        Path(role).mkdir()
        for name, data in files(seed).items():
            system.pipe(f"bucket/models/{role}/{name}", data)
            (Path(role) / name).write_bytes(data)
    yield system
    remote._system.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def plan(output: str, place: str) -> Path:
    path = Path(f"{output}.yaml")
    path.write_text(
        f"version: 1\nname: toy\ntarget: {place}/target\nsource_base: {place}/base\n"
        f"source_ft: {place}/ft\noutput: {{path: ./{output}}}\n"
    )
    return path


def test_the_bytes_are_those_of_local_models(store: Any) -> None:
    mergeengine.run(plan("local", "."))
    path = plan("out", "s3://bucket/models")
    assert mergeengine.run(path).made
    for file in Path("local").iterdir():
        if file.name not in ("mergeengine.json", "README.md"):
            assert (Path("out") / file.name).read_bytes() == file.read_bytes()
    assert not mergeengine.run(path).made
    assert b"GEHEIM" not in Path("out/mergeengine.json").read_bytes()
    store.pipe("bucket/models/ft/model.safetensors", files(3)["model.safetensors"])
    assert mergeengine.run(path).made


def test_what_is_not_there_or_changes(store: Any) -> None:
    (file,) = open_checkpoint("s3://bucket/models/ft").files
    remote.check_unchanged(file)
    store.pipe("bucket/models/ft/model.safetensors", files(3)["model.safetensors"])
    with pytest.raises(InputChangedError, match="changed while it was being read"):
        remote.check_unchanged(file)
    for place in ("bucket/none", "none/none"):
        with pytest.raises(CheckpointError, match="there is no such folder, or it is empty"):
            open_checkpoint(f"s3://{place}")
    with pytest.raises(CheckpointError, match="there is no such file"):
        open_checkpoint("s3://bucket/none.safetensors")


def test_without_credentials(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_") and name != "AWS_ENDPOINT_URL":
            monkeypatch.delenv(name)
    remote._system.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(CheckpointError, match="Unable to locate credentials"):
        open_checkpoint("s3://bucket/models/ft")
