"""The comparison with mergekit, as far as it goes without one: what is asked, and the judging."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.compare_mergekit import models, speed
from benchmarks.compare_mergekit.cases import (
    BASE,
    DTYPES,
    FORMS,
    LAYOUTS,
    RECIPES,
    TUNED,
    Case,
    grid,
)
from benchmarks.compare_mergekit.judging import judge, load
from benchmarks.compare_mergekit.report import BEGIN, END, broken, publish, table
from benchmarks.compare_mergekit.verdicts import Verdict

ROOT = Path(__file__).resolve().parents[2]
NAME = "model.layers.1.mlp.up_proj.weight"


def test_it_is_skipped_with_a_message_where_there_is_no_mergekit(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.compare_mergekit", "--folder", str(tmp_path)]
    environment = {**os.environ, "MERGEKIT": str(tmp_path / "no-such-program")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert "skipped: MERGEKIT is" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_grid_has_every_method_in_every_form() -> None:
    cases = grid(RECIPES, DTYPES, FORMS, LAYOUTS)
    assert len({case.name for case in cases}) == len(cases)
    assert {case.method for case in cases} == set(RECIPES)
    of_ties = [case for case in cases if case.method == "ties"]
    assert len(of_ties) == len(DTYPES) * len(FORMS) * len(LAYOUTS)


def test_what_a_form_means_for_a_tensor() -> None:
    gradient = Case("ties", "float32", "gradient", "models")  # 0.5, 1, 1.2 times the number
    assert gradient.value(0.4, "model.embed_tokens.weight") == 0.2
    assert gradient.value(0.4, "model.layers.0.x") == 0.2
    assert gradient.value(0.4, "model.layers.1.x") == pytest.approx(0.2 + 2 / 3 * 0.2)
    assert gradient.value(0.4, "model.layers.3.x") == pytest.approx(0.48)
    stacked = Case("ties", "float32", "gradient", "slices")  # layers 0, 1 and 1, 2, 3
    assert [stacked.value(0.4, f"model.layers.{layer}.x") for layer in range(5)] == pytest.approx(
        [0.2, 0.48, 0.2, 0.4, 0.48]
    )
    assert stacked.origin("model.layers.2.x") == "model.layers.1.x"
    assert stacked.origin("lm_head.weight") == "lm_head.weight"
    filtered = Case("ties", "float32", "filter", "models")
    found = [
        filtered.value(0.4, f"model.{part}.weight") for part in ("self_attn.q", "mlp.up", "norm")
    ]
    assert found == pytest.approx([0.48, 0.2, 0.4])


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("models")
    models.make(folder, "float32")
    return folder, {name: load(folder / name) for name in (BASE, *TUNED)}


def judged(inputs, folder: Path, method: str, change, form: str = "scalar") -> Verdict:
    """The verdict where mergekit's output is a model's, and ours the same but for one tensor."""
    case = Case(method, "float32", form, "models")
    theirs = inputs[1]["a"]
    for who, tensors in (("theirs", theirs), ("ours", {**theirs, NAME: change(theirs[NAME])})):
        (folder / who).mkdir()
        save_file(tensors, folder / who / "model.safetensors")
    return judge(case, folder / "ours", folder / "theirs", None, inputs[1])


def test_equal_outputs_are_as_promised(inputs, tmp_path) -> None:
    verdict = judged(inputs, tmp_path, "linear", lambda values: values)
    assert verdict.kept
    assert verdict.same == verdict.elements == sum(v.numel() for v in inputs[1]["a"].values())
    assert not broken([verdict])


def test_one_bit_is_not(inputs, tmp_path) -> None:
    def change(values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        values.view(torch.int32)[3, 5] ^= 1
        return values

    verdict = judged(inputs, tmp_path, "linear", change)
    assert not verdict.kept
    assert verdict.same == verdict.elements - 1
    assert 0 < verdict.furthest <= 1
    assert broken([verdict]) == [
        f"linear-float32-scalar-models: {verdict.same} of {verdict.elements} elements have the "
        "same bits"
    ]
    assert "| 99.99 | 100 |" in table([verdict])


def test_random_methods_are_held_to_their_statistics(inputs, tmp_path) -> None:
    base = inputs[1]["base"][NAME]
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(base.numel(), generator=generator)

    def mixed(values: torch.Tensor) -> torch.Tensor:
        return base + (values - base).flatten()[order].view(base.shape)

    def larger(values: torch.Tensor) -> torch.Tensor:
        return base + (values - base) * 1.1

    for number, (change, kept) in enumerate(((mixed, True), (larger, False))):
        (tmp_path / str(number)).mkdir()
        assert judged(inputs, tmp_path / str(number), "dare_ties", change).kept == kept


def test_ties_are_left_out(tmp_path) -> None:
    tensors = {name: {NAME: torch.zeros(4, 4)} for name in (BASE, *TUNED)}
    tensors["a"][NAME] = torch.arange(16.0).view(4, 4).clamp(max=6)  # ten are the largest
    for who in ("ours", "theirs"):
        (tmp_path / who).mkdir()
        save_file({NAME: tensors["a"][NAME]}, tmp_path / who / "model.safetensors")
    case = Case("ties", "float32", "scalar", "models")
    verdict = judge(case, tmp_path / "ours", tmp_path / "theirs", None, tensors)
    assert verdict.ties == 16  # b and c change nothing: all of theirs are alike
    tensors |= {name: {NAME: torch.arange(16.0).view(4, 4) * 1.5} for name in ("b", "c")}
    verdict = judge(case, tmp_path / "ours", tmp_path / "theirs", None, tensors)
    assert verdict.ties == 10
    assert verdict.kept


def test_tables_are_put_between_their_markers(tmp_path) -> None:
    page = tmp_path / "page.md"
    begin, end = BEGIN.format("mergekit", ""), END.format("mergekit")
    page.write_text(f"Before\n\n{begin}\nold\n{end}\n\nAfter\n")
    publish(page, "mergekit", "", "| new |")
    assert page.read_text() == f"Before\n\n{begin}\n\n| new |\n\n{end}\n\nAfter\n"
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    for name, words in (("mergekit", ""), ("mergekit-speed", " speed")):
        assert BEGIN.format(name, words) in readme
        assert END.format(name) in readme


def test_the_table_of_speed_has_the_medians() -> None:
    def figures(who: str, wall: float, beyond: int) -> dict[str, object]:
        return {
            "method": "ties",
            "who": who,
            "inside": wall - 1,
            "beyond": beyond << 20,
            "figures": {"wall": wall},
        }

    runs = [figures("mergeengine", wall, 10) for wall in (3.0, 9.0, 4.0)]
    runs += [figures("mergekit", wall, 500) for wall in (40.0, 31.0, 60.0)]
    document = {
        "date": "-",
        "machine": {"cores": 2, "processor": "-", "memory_bytes": 1 << 30, "disk": "-"},
        "layout": "-",
        "runs": runs,
    }
    assert speed.report(document).splitlines()[-1] == (
        "| `ties` | 4.0 | 3.0 | 10 | 40.0 | 39.0 | 500 | 10.0, 13.0 | 50 |"
    )
