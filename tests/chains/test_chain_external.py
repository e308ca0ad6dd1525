"""Steps that are done elsewhere, and evaluations."""

import json
import shutil
import stat
import sys
from copy import deepcopy
from pathlib import Path

import pytest
from chain_files import ITERATIVE, calls, make_model, steps_of, write_chain


@pytest.fixture
def document(here: Path) -> dict:
    document = deepcopy(ITERATIVE)
    steps_of(document)["m2_ft"].pop("run")
    external = {"about": "fine-tune it on the cluster: sbatch tune.sh", "uses": ["m2_start"]}
    steps_of(document)["m2_ft"]["external"] = external
    write_chain(here, document)
    return document


def test_the_chain_waits_and_goes_on(here, run, document):
    ended = run()
    assert ended.code == 9
    assert ended.outcomes == {"m1_ft": "made", "m2_start": "made", "m2_ft": "awaited"}
    assert "done elsewhere: fine-tune it on the cluster: sbatch tune.sh" in ended.err
    assert f"expected: a model folder with safetensors, in {here}/out/m2_ft" in ended.err
    assert f"m2_start: {here}/out/m2_start" in ended.err
    assert run().code == 9
    assert calls(here) == ["m1_ft"]
    make_model(here / "out" / "m2_ft", 11)
    ended = run()
    assert ended.code == 0
    assert ended.made == ["m3_start", "m3_ft"]
    assert set(run().outcomes.values()) == {"reused"}
    assert not (here / "out" / "m2_ft" / "mergeengine.json").exists()  # it is not ours


def test_half_of_it_is_not_taken(here, run, document):
    (here / "out").mkdir()
    make_model(here / "out" / "m2_ft", 11)
    path = here / "out" / "m2_ft" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    ended = run()
    assert ended.code == 9
    assert "it is not complete" in ended.err
    path.write_bytes(whole)
    assert run().code == 0


def test_another_one_is_taken_for_new(here, run, document):
    run()
    make_model(here / "out" / "m2_ft", 11)
    run()
    shutil.rmtree(here / "out" / "m2_ft")
    make_model(here / "out" / "m2_ft", 12)
    ended = run()
    assert ended.made == ["m3_start", "m3_ft"]
    assert ended.reasons["m3_start"] == "m2_ft changed"


def test_what_it_was_made_of_changed(here, run, document):
    run()
    make_model(here / "out" / "m2_ft", 11)
    run()
    steps_of(document)["m2_start"]["plan"]["scaling"] = 0.5
    write_chain(here, document)
    ended = run()
    assert ended.code == 9
    assert "what is there was made before: m2_start changed" in ended.err
    assert "--force with --step m2_ft takes what is there" in ended.err
    assert run("--step", "m2_ft", "--force").code == 0
    assert run().made == []
    steps_of(document)["m2_start"]["plan"]["scaling"] = 0.25
    write_chain(here, document)
    assert run().code == 9
    shutil.rmtree(here / "out" / "m2_ft")
    make_model(here / "out" / "m2_ft", 13)
    assert run().made == ["m3_start", "m3_ft"]


def test_others_go_on_with_keep_going(here, run, document):
    document["steps"].append(
        {"id": "aside", "plan": {"target": "m3", "source_base": "m1", "source_ft": "m1_ft"}}
    )
    write_chain(here, document)
    ended = run("--keep-going")
    assert ended.code == 9
    assert ended.outcomes["aside"] == "made"
    assert ended.outcomes["m3_start"] == "skipped"


HARNESS = f"""\
#!{sys.executable} -IS
import json, os, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
model = given["--model_args"].removeprefix("pretrained=")
size = os.path.getsize(model + "/model.safetensors")
first = open(model + "/model.safetensors", "rb").read()[-1]
folder = os.path.join(given["--output_path"], "model__name")
os.makedirs(folder)
json.dump(sys.argv[1:], open("given.json", "w"))
sums = {{"alias": "sums", "exact_match,none": first / 256, "exact_match_stderr,none": "N/A"}}
results = {{"sums": sums}}
json.dump({{"results": results, "config": {{}}}}, open(folder + "/results_2026-01-01.json", "w"))
"""


@pytest.fixture
def harness(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for lm-evaluation-harness, which writes what that writes."""
    program = here / "bin" / "lm_eval"
    program.parent.mkdir()
    program.write_text(HARNESS)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    (here / "tasks").mkdir()
    (here / "tasks" / "sums.yaml").write_text("task: sums\n")
    return program


def evaluated(*models: str) -> dict:
    steps = [
        {
            "id": f"score_{name}",
            "evaluate": {
                "model": name,
                "tasks": ["sums"],
                "task_folder": "tasks",
                "arguments": ["--limit", 10],
            },
        }
        for name in models
    ]
    document = deepcopy(ITERATIVE)
    document["steps"] = document["steps"][:2] + steps
    document["steps"][0]["run"]["command"][0] = "{python}"
    del document["steps"][0]["run"]
    document["steps"][0]["plan"] = {"base": "m1", "source_ft": "m3"}
    return document


def test_evaluations(here, run, command, harness):
    write_chain(here, evaluated("m1", "m2_start"))
    assert command("run", "chain.yaml").code == 2  # its tasks may hold code
    ended = run()
    assert ended.code == 0
    measured = {s["id"]: s["measured"] for s in json.loads(ended.out)["steps"] if s["measured"]}
    value = (here / "m1" / "model.safetensors").read_bytes()[-1] / 256
    assert measured["score_m1"] == {"sums": {"exact_match": value}}
    assert measured.keys() == {"score_m1", "score_m2_start"}
    given = json.loads((here / "given.json").read_text())
    assert given[given.index("--model_args") + 1] == f"pretrained={here}/out/m2_start"
    assert given[given.index("--include_path") + 1] == str(here / "tasks")
    assert given[-2:] == ["--limit", "10"]
    table = command("run", "chain.yaml", "--allow-commands").out
    assert f"sums: exact_match {value:.4g}" in table
    assert set(run().outcomes.values()) == {"reused"}
    (here / "tasks" / "sums.yaml").write_text("task: sums\nx: 1\n")
    ended = run()
    assert ended.made == ["score_m1", "score_m2_start"]
    assert ended.reasons["score_m1"] == "the file tasks/sums.yaml changed"


def test_a_harness_that_leaves_nothing(here, run, harness):
    harness.write_text("#!/bin/sh\n")
    write_chain(here, evaluated("m1"))
    ended = run()
    assert ended.code == 8
    assert "lm_eval ended with 0 but left no results" in ended.err


def test_without_the_harness(here, run, harness):
    harness.unlink()
    write_chain(here, evaluated("m1"))
    ended = run()
    assert (ended.code, "pip install 'mergeengine[evaluation]'" in ended.err) == (8, True)
