"""Whether torch need be asked about accelerators."""

import sys
from pathlib import Path

import pytest

from mergeengine.execution.presence import only_the_cpu


def test_a_name_says_it(tmp_path: Path) -> None:
    assert only_the_cpu("cpu", tmp_path)
    for names in ("cuda", "cuda:0,cuda:1", "xpu", "cpu,cuda"):
        assert not only_the_cpu(names, tmp_path)


@pytest.mark.parametrize("node", ["nvidia0", "nvidiactl", "kfd", "dxg", "dri", "accel", "accel0"])
def test_a_driver_shows(node: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert only_the_cpu("auto", tmp_path)
    (tmp_path / node).touch()
    assert not only_the_cpu("auto", tmp_path)
    assert only_the_cpu("cpu", tmp_path)


def test_elsewhere_torch_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not only_the_cpu("auto", tmp_path)
