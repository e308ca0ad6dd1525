"""The peak of memory is small for every kind of elementwise plan, and none grows with its models.

Both loops are measured; by default nothing limits them but the machine.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from children import Child, compiled, run_with, without_output
from lineage import Shapes, llama, many, sparse_lineage, write_model, write_plan
from torch import Tensor

from tests.compiled_loop import needs_loop

MiB = 1 << 20
PROMISED = 256 * MiB
SLACK = 2 * MiB  # between two measured peaks: pages of the allocator, a worker more or less busy

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc"),
    pytest.mark.parametrize(
        "loop",
        [
            pytest.param(True, marks=needs_loop, id="compiled"),
            pytest.param(False, id="torch"),
        ],
    ),
]


def measure(plan: Path, loop: bool, *hooks: Any, **options: Any) -> tuple[dict[str, Any], int]:
    """The report of a run, and its peak, which is within the projection and the promise."""
    (made, report), peak = Child(run_with, plan, options, (compiled, loop), *hooks).go().watch()
    assert made
    assert (report["loop"] != "torch") == loop
    assert peak <= report["memory"]["projected_bytes"] <= PROMISED
    return report, peak


# --- it does not grow ----------------------------------------------------------------------


def compare(small: Shapes, large: Shapes, loop: bool, folder: Path) -> tuple[int, int]:
    """How much the peak, and the projection, of the second are above those of the first."""
    projected, peaks = [], []
    for number, shapes in enumerate((small, large)):
        plan = sparse_lineage(folder / str(number), shapes)
        report, peak = measure(plan, loop, (without_output, None), workers=2)
        assert report["bytes"]["read"] == 3 * report["bytes"]["written"] > 0
        projected.append(report["memory"]["projected_bytes"])
        peaks.append(peak)
    return peaks[1] - peaks[0], projected[1] - projected[0]


def test_larger_tensors_take_no_more(loop: bool, folder: Path) -> None:
    growth = compare(many(2, 12, 1 << 20), many(2, 120, 1 << 20), loop, folder)
    assert growth[0] <= SLACK
    assert growth[1] == 0


def check_only_names_take_more(small: Shapes, large: Shapes, loop: bool, folder: Path) -> None:
    growth = compare(small, large, loop, folder)
    names = (len(large) - len(small)) * 8 * 1024
    assert growth[0] <= names + SLACK
    assert 0 < growth[1] <= names


def test_a_model_of_more_and_larger_tensors_takes_no_more(loop: bool, folder: Path) -> None:
    """The layouts of Llamas of 1B and 70B, at a 32nd of their widths."""
    check_only_names_take_more(llama(64, 256, 16, 16), llama(256, 896, 32, 80), loop, folder)


@pytest.mark.slow
def test_the_widths_of_70b_take_no_more_than_a_1b(loop: bool, folder: Path) -> None:
    """The first four layers. ``benchmarks.large_layout`` is where all 80 are merged."""
    small, large = llama(2048, 8192, 512, 16), llama(8192, 28_672, 1024, 4)
    growth = compare(small, large, loop, folder)
    assert growth[0] <= SLACK
    assert growth[1] <= 0  # fewer tensors


# --- every kind of plan --------------------------------------------------------------------

DTYPES = ["bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"]
ROWS, WIDTH = 1300, 1000  # more than a chunk
GROWN = "embed_tokens.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of one name in each dtype; which tensor has which differs from model to model.

    Random values: zeros would not take the paths of rounding that need temporaries.
    """
    root = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(3)
    values = torch.randn((ROWS + 100, WIDTH), generator=generator)

    def model(role: str, turn: int, rows: int = ROWS, **more: Tensor) -> None:
        tensors = dict(more)
        for number in range(len(DTYPES)):
            dtype = getattr(torch, DTYPES[(number + turn) % len(DTYPES)])
            name = f"model.layers.{number}.mlp.weight"
            tensors[name] = values[:ROWS].roll(turn + number).to(dtype)
        tensors[GROWN] = values[:rows].to(torch.bfloat16)
        tensors["steps"] = torch.arange(1 << 20)
        write_model(root / role, tensors)

    model("target", 0)
    for number in range(3):
        model(f"base{number}", 2 * number)
        model(f"ft{number}", 2 * number + 1)
    extra = {"model.layers.9.mlp.weight": values[:ROWS].to(torch.float16)}
    model("larger_base", 0, ROWS + 100)
    model("larger_ft", 1, ROWS + 100, **extra)
    yield root
    shutil.rmtree(root)


def source(root: Path, number: int, **keys: Any) -> dict[str, Any]:
    pair = {role: str(root / f"{role.removeprefix('source_')}{number}") for role in ROLES}
    return {**pair, "scaling": 0.3 + number, **keys}


ROLES = ("source_base", "source_ft")
MASKS = [{"layers": "0-1", "scale": 0.0}, {"match": "*.3.mlp.*", "scale": 0.25}]
OTHER_MASKS = [{"layers": "2", "scale": -1.0}, {"match": GROWN, "scale": 0.0}]
VOCABULARY = {"on_extra": "copy"}


def plans(root: Path) -> dict[str, tuple[dict[str, Any], dict[str, int]]]:
    """Keys of a plan, and how many tensors of each kind it must have."""
    one = [source(root, 0)]
    three = [source(root, 0, masks=OTHER_MASKS), source(root, 1), source(root, 2, masks=MASKS)]
    larger = {role: str(root / f"larger_{role.removeprefix('source_')}") for role in ROLES}
    merged = {"merged": 7, "not float": 1}
    return {
        "one source": ({"sources": one}, merged),
        "masks": ({"sources": one, "masks": MASKS}, {"merged": 5, "frozen": 2, "not float": 1}),
        "three sources": ({"sources": [source(root, n) for n in range(3)]}, merged),
        "three sources and masks": (
            {"sources": three, "masks": MASKS[1:]},
            merged,
        ),
        "larger vocabulary": (
            {"sources": [larger], **VOCABULARY},
            {"merged": 7, "not float": 1, "copied": 1},
        ),
        **{
            f"all in {dtype}": ({"sources": three, "output": {"dtype": dtype}}, merged)
            for dtype in DTYPES[:4]
        },
        "float64 throughout": (
            {"sources": three, "numerics": {"compute_dtype": "float64"}},
            merged,
        ),
    }


@pytest.mark.parametrize("name", plans(Path("/")))
def test_every_kind_of_plan_keeps_the_promise(
    name: str, loop: bool, models: Path, folder: Path
) -> None:
    keys, kinds = plans(models)[name]
    keys = {**keys, "output": {"path": "./out", **keys.get("output", {})}}
    unset = {"source_base": None, "source_ft": None}
    plan = write_plan(folder, target=str(models / "target"), **unset, **keys)
    report, _ = measure(plan, loop)
    assert report["tensors"] == kinds


# --- vocabularies --------------------------------------------------------------------------


def test_tokens_in_other_orders(loop: bool, folder: Path) -> None:
    """Rows of the size of a large model's vocabulary, each model's in an order of its own."""
    count, generator = 100_000, torch.Generator().manual_seed(5)
    values = torch.randn((count, 64), generator=generator).to(torch.bfloat16)
    for number, role in enumerate(("target", "base", "ft")):
        order = torch.randperm(count, generator=generator).tolist() if number else range(count)
        tokens = {f"token {token}": row for row, token in enumerate(order)}
        write_model(folder / role, {GROWN: values.roll(number, 1).clone()})
        document = {"added_tokens": [], "model": {"type": "BPE", "vocab": tokens, "merges": []}}
        (folder / role / "tokenizer.json").write_text(json.dumps(document))
    plan = write_plan(folder, output={"path": "./out"})
    report, _ = measure(plan, loop)
    assert report["vocabulary"]["delta"] == count
