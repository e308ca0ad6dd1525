"""A whole run by way of accelerators, on stand-ins: the same files, told and bounded."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from stand_in_device import StandInDevice

import mergeengine
from mergeengine.cli import call
from mergeengine.errors import Interrupted, ResourceError
from mergeengine.execution import pipeline
from mergeengine.workflow import produce

MiB = 1 << 20
SHAPES = {"model.layers.0.w": (1100, 1000), "model.layers.1.w": (700, 30), "model.norm": (30,)}


class Stand(StandInDevice):
    """Called as torch's device is, with as much free memory as the test says."""

    made: list["Stand"]
    free_bytes = 4000 * MiB

    def __init__(self, device: torch.device) -> None:
        super().__init__(seed=device.index)
        self.name = str(device)
        self.made.append(self)


@pytest.fixture
def stands(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Stand]]:
    """A machine of two accelerators; those that were opened."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(pipeline, "TorchDevice", Stand)
    monkeypatch.setattr(produce, "only_the_cpu", lambda names: names == "cpu")
    Stand.made = []
    yield Stand.made
    assert all(device.pending == 0 for device in Stand.made)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    generator = torch.Generator().manual_seed(1)
    for name in ("target", "base", "ft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "toy"}))
        values = {
            key: torch.randn(shape, generator=generator).to(torch.bfloat16)
            for key, shape in SHAPES.items()
        }
        save_file(values, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    path = tmp_path / "plan.yaml"
    path.write_text(
        "version: 1\ntarget: ./target\nsource_base: ./base\nsource_ft: ./ft\nscaling: 0.3\n"
        "output: {path: ./out}\n"
    )
    monkeypatch.chdir(tmp_path)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1", "cuda:0,cuda:1"])
def test_the_files_are_those_of_the_cpu(
    device: str, plan: Path, tmp_path: Path, stands: list[Stand]
) -> None:
    mergeengine.run(plan, output="by-cpu", device="cpu")
    assert not stands
    report = mergeengine.run(plan, output="there", device=device, device_memory="1GiB").report
    assert files(tmp_path / "there") == files(tmp_path / "by-cpu")
    names = {"auto": "cuda:0", "cuda": "cuda:0"}.get(device, device)
    assert (report["device"], report["loop"]) == (names, "torch")
    assert [stand.name for stand in stands] == names.split(",")
    for stand in stands:
        assert 0 < stand.peak_bytes <= report["memory"]["device_projected_bytes"] <= 1024 * MiB
        assert stand.peak_pinned_bytes <= report["memory"]["projected_bytes"]


def test_a_stopped_run_goes_on_with_another_device(
    plan: Path, tmp_path: Path, stands: list[Stand]
) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        if phase == "merging" and done > 0:
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        mergeengine.run(plan, device="cuda", workers=1, progress=stop)
    report = mergeengine.run(plan, device="cpu").report
    assert report["bytes"]["kept_from_earlier_run"] > 0
    mergeengine.run(plan, output="afresh", device="cpu")
    assert files(tmp_path / "out") == files(tmp_path / "afresh")


def test_what_does_not_fit_is_refused_before_anything_is_read(
    plan: Path, tmp_path: Path, stands: list[Stand]
) -> None:
    with pytest.raises(ResourceError, match=r"on each device to run on 2 accelerators, and 5 MiB"):
        mergeengine.run(plan, device="cuda:0,cuda:1", device_memory=5 * MiB)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
    assert all(stand.peak_bytes == stand.peak_pinned_bytes == 0 for stand in stands)


def test_a_lazy_checkpoint_is_saved_the_same(
    plan: Path, tmp_path: Path, stands: list[Stand]
) -> None:
    target, ft = map(mergeengine.open_checkpoint, ("./target", "./ft"))
    merged = target + 0.5 * (ft - target)
    merged.save("by-cpu", device="cpu")
    merged.save("there", device="cuda:1", device_memory=1024 * MiB)
    assert files(tmp_path / "there") == files(tmp_path / "by-cpu")
    assert [stand.name for stand in stands] == ["cuda:1"]


def test_the_plan_command_tells_the_bounds(
    plan: Path, stands: list[Stand], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["plan", "plan.yaml", "--device", "cuda:0,cuda:1", "--workers", "3"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"on a device +[0-9.]+ MiB projected, 1.953 GiB allowed", text)
    assert re.search(r"workers +3\n", text)
    assert call(["plan", "plan.yaml", "--device", "cuda", "--device-memory", "5MiB"]) == 0
    text = capsys.readouterr().out
    assert "does not fit  this plan needs at least" in text
    assert "raise --device-memory" in text
    assert call(["plan", "plan.yaml", "--device", "cuda", "--format", "json"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert memory["device_allowed_bytes"] == 2000 * MiB
    assert 0 < memory["device_projected_bytes"] < 200 * MiB


def test_the_run_command_takes_the_bounds(
    plan: Path, stands: list[Stand], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--device", "cuda:0,cuda:1", "--device-memory", "300MiB"]
    assert call(["run", "plan.yaml", *options]) == 0
    assert "on cuda:0,cuda:1" in capsys.readouterr().err
    assert call(["run", "plan.yaml", "--device", "cuda:0,cuda:0", "--force"]) == 4
    assert "cuda:0 is there twice" in capsys.readouterr().err
