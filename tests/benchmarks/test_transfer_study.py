"""The study at the size of a toy: its chains, what is measured, the tables, and being killed."""

import json
import math
import shutil
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.tiny.tokenizer import build_tokenizer
from benchmarks.tiny.training import batches as supply_of
from benchmarks.tiny.training import fit, load_model, new_model, new_optimizers, save
from benchmarks.transfer_study import work
from benchmarks.transfer_study.comparisons import barrier, rank_correlation, steps_to, tables
from benchmarks.transfer_study.measure import measure
from benchmarks.transfer_study.recipe import (
    BASES,
    INSTRUCTION,
    LATIN,
    PRETRAINING,
    Finetuning,
    Measuring,
    Pretraining,
    Recipe,
    read,
)
from benchmarks.transfer_study.report import publish
from benchmarks.transfer_study.scoring import questions, score
from benchmarks.transfer_study.tables import Finding, Spread
from benchmarks.transfer_study.train import finetune, pretrain

TOY = Recipe(
    Pretraining(16, 2, 2, replace(PRETRAINING, steps=10, batch=4), (2, 4, 6, 8, 10)),
    Finetuning(
        replace(INSTRUCTION, steps=4, batch=4), replace(LATIN, steps=2, batch=4), (2,), questions=20
    ),
    Measuring(questions=20, line=(0.0, 1.0), scalings=(0.0, 1.0), weights=(0.0, 1.0)),
)

# In the place of the trainings: changes a byte of each value by what the step is called. Only the
# standard library, so that it takes no time. The step named in `killed` kills the engine once.
STAND_IN = """\
import json, os, shutil, signal, sys, zlib
from pathlib import Path
here = Path(__file__).parents[2]
step = os.environ["MERGEENGINE_STEP"]
with open("calls.txt", "a") as file:
    file.write(step + "\\n")
killed = here / "killed"
if killed.exists() and killed.read_text() == step:
    killed.unlink()
    os.kill(os.getppid(), signal.SIGKILL)
    sys.exit(1)
kind, first, output = sys.argv[1:4]
source = here / "model" if kind == "pretrain" else Path(first)
data = bytearray((source / "model.safetensors").read_bytes())
start = 8 + int.from_bytes(data[:8], "little")
for place in range(start + 2, len(data), 4):
    data[place] = (data[place] + zlib.crc32(step.encode()) % 97 + 1) % 256
shutil.copytree(source, output, ignore=shutil.ignore_patterns("mergeengine.json"))
Path(output, "model.safetensors").write_bytes(data)
curve = [{"step": n, "accuracy": n / 8, "loss": 1.0} for n in (0, 2, 4)]
Path(output, "curve.json").write_text(json.dumps(curve))
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Where the stand-in for the trainings lies, before this project's own packages."""
    folder = tmp_path_factory.mktemp("programs")
    package = folder / "benchmarks" / "transfer_study"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "train.py").write_text(STAND_IN)
    torch.manual_seed(0)
    tokenizer = build_tokenizer(chat=False, latin=True)
    save(new_model(16, 2, 2, tokenizer), tokenizer, folder / "model")
    return folder


@pytest.fixture(scope="module")
def run(programs):
    """Run the chains of a study in a folder, without measuring."""

    def run(folder: Path, *jobs: str, killed: str | None = None) -> None:
        if killed is not None:
            (programs / "killed").write_text(killed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(work, "PATHS", [programs, *work.PATHS])
            if jobs:
                patch.setattr(work, "NEEDS", {job: jobs[:n] for n, job in enumerate(jobs)})
            patch.setattr(work, "_MEASURE", ("-c", "open('measures.json', 'w').write('{}')"))
            work.run_all(folder, [0], TOY, workers=2)

    return run


@pytest.fixture(scope="module")
def study(tmp_path_factory, run):
    """A whole study, whose engine was killed in the middle of Algorithm 1."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.raises(work.JobFailed, match="seed 0: algorithm-1"):
        run(folder, "lineage", "algorithm-1", killed="m3_ft")
    run(folder)
    return folder / "seed0"


@pytest.fixture(scope="module")
def measures(study):
    return measure(study, lambda text: None)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: w.double() for name, w in load_file(folder / "model.safetensors").items()}


def calls(folder: Path) -> list[str]:
    return (folder / "calls.txt").read_text().split()


def test_nothing_is_done_twice(study):
    """All was run a second time; but of the programs only the one that was killed."""
    known = calls(study)
    assert [step for step in set(known) if known.count(step) > 1] == ["m3_ft"]
    assert len(set(known)) == 5 + 15 + 5


def test_killed_or_not_the_same_bytes(study, run, tmp_path):
    shutil.copytree(study / "bases", tmp_path / "seed0" / "bases")
    run(tmp_path, "algorithm-1", "measuring")
    for name in ("m2_start", "m5_ft"):
        one, other = (
            folder / "algorithm-1" / name / "model.safetensors"
            for folder in (study, tmp_path / "seed0")
        )
        assert one.read_bytes() == other.read_bytes()


def test_algorithm_1_by_hand(study):
    """Each start of the chain is Mᵢ + (M*ᵢ₋₁ − Mᵢ₋₁), in float64, rounded once."""
    for old, new in pairwise(BASES):
        target, base = weights(study / "bases" / new), weights(study / "bases" / old)
        tuned = weights(study / "algorithm-1" / f"{old}_ft")
        start = weights(study / "algorithm-1" / f"{new}_start")
        for name, found in start.items():
            expected = target[name] + (tuned[name] - base[name])
            assert torch.equal(found, expected.float().double())


def test_what_is_measured_belongs_together(measures):
    """Ends of lines, scalings and the grid are models that are measured by themselves, too."""
    matrix, bases = measures["models"]["matrix"], measures["models"]["bases"]

    def is_score(point, known):
        return point["loss"] == pytest.approx(known["loss"], rel=1e-5)

    for delta in BASES:
        for base in BASES:
            if delta != base:
                line = measures["lines"][delta][base]
                assert [point["at"] for point in line] == [0.0, 1.0]
                assert is_score(line[0], matrix[delta][base])
                assert is_score(line[-1], matrix[base][base])
                old, new = sorted((delta, base))
                ends = measures["between"][old][new]
                assert is_score(ends[0], bases[old]["notes"])
                assert is_score(ends[-1], bases[new]["notes"])
    for delta, found in measures["scalings"].items():
        for base, (none, all_of_it) in found.items():
            assert is_score(none, bases[base]["english"])
            assert is_score(all_of_it, matrix[delta][base])
    grid = {(p["english weight"], p["latin weight"]): p for p in measures["grid"]}
    assert is_score(grid[0.0, 0.0]["latin"], bases["m5"]["latin"])
    assert is_score(grid[1.0, 0.0]["english"], matrix["m4"]["m5"])
    assert measures["geometry"]["distance"]["m2"]["m2"] == 0
    assert measures["geometry"]["cosine"]["m3"]["m3"] == pytest.approx(1)


def test_measured_once(study, measures):
    told = []
    assert measure(study, told.append) == measures
    assert told == []
    (study / "measures" / "grid.json").unlink()
    assert measure(study, told.append) == measures
    assert told == ["measuring grid"]


def test_report(measures, tmp_path):
    """What is measured of each seed is in its cell, and each claim is held against it."""
    better = deepcopy(measures)
    matrix = better["models"]["matrix"]
    for number, (base, delta) in enumerate(product(BASES, BASES)):
        matrix[delta][base]["accuracy"] = 0.01 * number
    publish(tmp_path, {0: measures, 1: better}, TOY)
    text = (tmp_path / "README.md").read_text()
    assert text.count("\n## ") == 10
    found = json.loads((tmp_path / "tables.json").read_text())["tables"]
    rows = {row[0]: row[1:] for row in found["matrix"]["rows"]}
    plain = measures["models"]["matrix"]
    for delta in BASES:
        for cell, base in zip(rows[f"+ Δ{delta[1:]}"], BASES, strict=True):
            assert cell == [plain[delta][base]["accuracy"], matrix[delta][base]["accuracy"]]
    assert rows["mean of others' Δ"][0][1] == pytest.approx((0.01 + 0.02 + 0.03 + 0.04) / 4)
    assert rows["mean of others' Δ"][4][1] == pytest.approx((0.20 + 0.21 + 0.22 + 0.23) / 4)
    assert found["matrix"]["findings"][0]["seen"][1] is True
    recycled = dict(row[:2] for row in found["recycling"]["rows"])
    assert recycled["M5 + Δ4"][1] == matrix["m4"]["m5"]["accuracy"] == pytest.approx(0.23)
    assert recycled["M4 + Δ5"][1] == matrix["m5"]["m4"]["accuracy"] == pytest.approx(0.19)
    assert "| + Δ5 | 0.02 ± 0.03 |" in text  # 0 and 0.04


def test_plots(measures, tmp_path):
    pytest.importorskip("matplotlib")
    assert publish(tmp_path, {0: measures, 1: measures}, TOY)
    for table in tables([measures]):
        for plot in table.plots:
            assert 0 < (tmp_path / plot).stat().st_size < 100_000


def test_spreads_and_findings():
    assert str(Spread((0.5,))) == "0.50"
    assert str(Spread((-0.5,))) == "−0.50"
    assert str(Spread((0.4, 0.6, 0.8), digits=1)) == "0.6 ± 0.2"
    assert str(Finding("Up", (True,))) == "Up: seen."
    assert str(Finding("Up", (False,))) == "Up: **not seen**."
    assert str(Finding("Up", (True, True, False))) == "Up: seen in 2 of 3 seeds."
    assert str(Finding("Up", (True, False, False))) == "Up: **seen in 1 of 3 seeds**."


def test_barrier():
    """What lies above the straight line between the ends, not above either of them."""
    ends = {"start": 4.0, "end": 2.0}
    line = [(0.0, ends["start"]), (0.5, 3.7), (0.75, 2.6), (1.0, ends["end"])]
    assert barrier([{"at": at, "loss": loss} for at, loss in line]) == pytest.approx(0.7)
    convex = [(0.0, 4.0), (0.5, 2.2), (1.0, 2.0)]
    assert barrier([{"at": at, "loss": loss} for at, loss in convex]) == 0


def test_rank_correlation():
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: their covariance 1.5 over the root of 1.5 * 5/3.
    tied = rank_correlation([1, 2, 2, 3], [1, 3, 2, 4])
    assert tied == pytest.approx(1.5 / math.sqrt(1.5 * 5 / 3))
    assert rank_correlation([1, 1], [1, 2]) == 0


def test_steps_to():
    accuracies = {0: 0.9, 10: 0.4, 20: 0.6, 30: 0.8}
    curve = [{"step": step, "accuracy": accuracy} for step, accuracy in accuracies.items()]
    assert steps_to(curve, 0.5) == 20  # what was there at the start was lost again
    assert steps_to(curve, 0.4) == 0
    assert steps_to(curve, 0.85) == math.inf


def test_scores():
    """An answer with one wrong token is wrong; what is asked does not count."""
    asked = questions(build_tokenizer(chat=True, latin=True), "english", 10)
    wanted = asked.tokens[:, 1:].clone()
    learnt = asked.labels[:, 1:] != -100
    wanted[~learnt] = 0
    for row in (2, 7):
        last = learnt[row].nonzero()[-1].item()
        wanted[row, last] += 1

    class Says:
        def eval(self):
            return self

        def __call__(self, input_ids, use_cache):
            assert torch.equal(input_ids, asked.tokens[:, :-1])
            logits = torch.nn.functional.one_hot(wanted, int(wanted.max()) + 1) * 100.0
            return type("Output", (), {"logits": logits})

    assert score(Says(), asked).accuracy == pytest.approx(0.8)


def test_the_two_languages_differ():
    tokenizer = build_tokenizer(chat=True, latin=True)
    english, latin = (questions(tokenizer, kind, 10).tokens for kind in ("english", "latin"))
    assert english.shape != latin.shape or not torch.equal(english, latin)
    assert tokenizer.unk_token_id is None
    text = "Scribe ABCD a tergo."
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_sittings_are_one_run(tmp_path):
    """The second sitting goes on with the optimizers of the first, as if it had not ended."""
    stage = replace(PRETRAINING, steps=4, batch=4, warmup=2)
    recipe = Pretraining(16, 2, 2, stage, (2, 4))
    pretrain(recipe, 3, 1, None, tmp_path / "m1")
    pretrain(recipe, 3, 2, tmp_path / "m1", tmp_path / "m2")

    tokenizer = build_tokenizer(chat=False, latin=True)
    torch.manual_seed(3)
    model = new_model(16, 2, 2, tokenizer)
    optimizers = new_optimizers(model, stage)
    for number, (first, last) in enumerate(((0, 2), (2, 4)), 1):
        supply = supply_of(tokenizer, stage, 3000 + number)
        fit(model, stage, supply, lambda *_: None, optimizers=optimizers, first=first, last=last)
    for name, weight in load_file(tmp_path / "m2" / "model.safetensors").items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_fine_tuning(tmp_path):
    """Seeded, and its curve ends at what it saves."""
    tokenizer = build_tokenizer(chat=False, latin=True)
    torch.manual_seed(0)
    save(new_model(16, 2, 2, tokenizer), tokenizer, tmp_path / "base")
    for name in ("one", "two"):
        finetune(TOY.finetuning, 0, tmp_path / "base", tmp_path / name, latin=False)
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    curve = json.loads((tmp_path / "one" / "curve.json").read_text())
    assert [point["step"] for point in curve] == [0, 2, 4]
    asked = questions(build_tokenizer(chat=True, latin=True), "english", 20)
    assert score(load_model(tmp_path / "one"), asked).loss == pytest.approx(curve[-1]["loss"])


def test_a_recipe_is_read_as_it_was_written(tmp_path):
    TOY.write(tmp_path, 5)
    assert read(tmp_path, Pretraining) == (TOY.pretraining, 5)
    assert read(tmp_path, Finetuning) == (TOY.finetuning, 5)
    assert read(tmp_path, Measuring) == (TOY.measuring, 5)
