"""What tests of several floors share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from command_line import Command, Ended
from hub_stand_in import StandInHub
from hypothesis import settings
from remote_stand_in import StandInServer

if TYPE_CHECKING:
    from torch import Tensor

    from mergeengine.lazy.tensor import LazyTensor

# Other load on the machine must not fail a test: speed is measured in benchmarks.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """A way to call the command line."""
    from mergeengine.cli import call

    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        code = call(arguments)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """A hub without models, a cache of the test's own, and a working directory of its own."""
    from huggingface_hub import constants

    from mergeengine.checkpoints import hub as hub_module

    server = StandInHub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        server.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(hub_module, "_RETRY_AFTER", (0.0, 0.0))
    monkeypatch.chdir(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInServer]:
    """A web server without files; pauses between attempts are short."""
    pytest.importorskip("aiohttp", reason="pip install -e .[dev]")
    from mergeengine.checkpoints import remote

    monkeypatch.setattr(remote, "_PAUSE", 0.001)
    server = StandInServer()
    yield server
    remote._system.cache_clear()
    server.stop()


@pytest.fixture
def store(tmp_path: Path) -> "Callable[[Tensor], LazyTensor]":
    """Write a tensor to a file of its own, after an odd number of other bytes."""
    import torch

    from mergeengine.execution.kernels import TORCH_DTYPES
    from mergeengine.lazy import algebra
    from mergeengine.lazy.dtypes import BY_NAME
    from mergeengine.lazy.stored import Stored, StoredFile
    from mergeengine.lazy.tensor import LazyTensor

    names = {dtype: name for name, dtype in TORCH_DTYPES.items()}
    counter = iter(range(10**6))

    def write(tensor: "Tensor") -> LazyTensor:
        path = tmp_path / f"tensor{next(counter)}.bin"
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        path.write_bytes(b"header" + data + b"trailer")
        dtype = BY_NAME[names[tensor.dtype]]
        file = StoredFile(path, path.stat().st_size)
        return LazyTensor(
            algebra.stored(Stored("test", path.stem, dtype, tuple(tensor.shape), file, 6))
        )

    return write
