"""The check of the large merge sees a single wrong byte, wherever it is, and what is missing."""

from pathlib import Path

import pytest
import torch

from benchmarks import large_layout
from benchmarks.large_layout import in_memory, read_back, to_files
from benchmarks.large_model import ROLES, Check, described, make, parts, windows
from mergeengine.output.layout import Layout, Placed, lay_out

LARGE = (2500, 1000)  # three chunks: windows at its ends and in its middle, holes between them
SHAPES = {"model.embed_tokens": LARGE, "model.norm": (1000,), "lm_head": LARGE}
SHARD = 6_000_000
NUMEL = LARGE[0] * LARGE[1]
PLACES = {
    "the first element": 0,
    "the middle window": windows(NUMEL)[1][0] + 1000,
    "the last element": NUMEL - 1,
    "a hole": 500_000,
    "the hole's last element": windows(NUMEL)[2][0] - 1,
}


@pytest.fixture(scope="module")
def placed() -> Layout:
    layout = lay_out(described(SHAPES), SHARD)
    assert len(layout.shards) > 1
    return layout


@pytest.fixture
def models(tmp_path: Path, placed: Layout, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(large_layout, "SHARD", SHARD)
    for role in ROLES:
        make(tmp_path, role, placed)
    return tmp_path


def corrupt(folder: Path, placed: Layout, tensor: Placed, element: int) -> None:
    """Change one byte: the high one, as a last bit of an input may be rounded away."""
    with (folder / placed.shards[tensor.shard].name).open("r+b") as file:
        file.seek(tensor.offset + 2 * element + 1)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0x40]))


def last(placed: Layout) -> Placed:
    tensor = placed.tensors[-1]
    assert tensor.name == "lm_head.weight"
    return tensor


def test_what_is_right_passes(
    models: Path, placed: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    in_memory(models, placed)
    to_files(models, placed)
    assert capsys.readouterr().out.count("0.03 M random values and 0.00 G zeros as expected") == 2


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("place", PLACES)
def test_one_wrong_byte_of_an_input_is_seen(
    place: str, role: str, models: Path, placed: Layout
) -> None:
    corrupt(models / role, placed, last(placed), PLACES[place])
    with pytest.raises(SystemExit, match=r"^lm_head.weight"):
        in_memory(models, placed)


@pytest.mark.parametrize("place", PLACES)
def test_one_wrong_byte_of_the_output_is_seen(place: str, models: Path, placed: Layout) -> None:
    to_files(models, placed)
    read_back(models / "out", placed)
    corrupt(models / "out", placed, last(placed), PLACES[place])
    with pytest.raises(SystemExit, match=r"^lm_head.weight"):
        read_back(models / "out", placed)


def test_a_negative_zero_is_seen(placed: Layout) -> None:
    """It equals zero, and is other bits."""
    found = torch.zeros(NUMEL, dtype=torch.bfloat16)
    found[500_000] = -0.0
    with pytest.raises(SystemExit, match="not all zero"):
        Check(placed)._zero("lm_head.weight", 0, found)


def test_what_is_missing_or_out_of_order_is_seen(models: Path, placed: Layout) -> None:
    to_files(models, placed)
    check = Check(placed)
    norm = placed.tensors[1]
    ((start, values),) = parts(models / "out", norm.name, placed.shards[norm.shard].name)
    check.part(norm.name, start, values)
    with pytest.raises(SystemExit, match=r"incomplete: model.embed_tokens.weight, lm_head.weight"):
        check.end()
    with pytest.raises(SystemExit, match="comes after"):
        check.part(norm.name, start, values)


def test_an_output_with_other_files_is_seen(models: Path, placed: Layout) -> None:
    to_files(models, placed)
    (models / "out" / placed.shards[0].name).unlink()
    with pytest.raises(SystemExit, match="the output's files are"):
        read_back(models / "out", placed)
