"""Intermediates that are removed, or never written: the result is the same to the last byte."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from chain_files import ITERATIVE, calls, digests, make_model, steps_of, tune, write_chain
from safetensors.torch import load_file, save_file

TWO = {
    "version": 1,
    "name": "two",
    "models": {"m1": "./m1", "m2": "./m2", "m3": "./m3"},
    "steps": [
        {"id": "first", "plan": {"target": "m1", "source_base": "m2", "source_ft": "m3"}},
        {"id": "second", "plan": {"target": "first", "source_base": "m3", "source_ft": "m2"}},
    ],
}
SECOND = {
    "as_target": {"target": "first", "source_base": "m3", "source_ft": "m2"},
    "as_source": {"target": "m1", "source_base": "m2", "source_ft": "first"},
    "as_base": {"target": "m1", "source_base": "first", "source_ft": "m2"},
    "same": {"target": "m2", "source_base": "m1", "source_ft": "first"},
    "norms": {"base": "m2", "source_ft": "first", "scaling": {"ratio": 0.1}},
    "masked": {
        "target": "m2",
        "source_base": "m1",
        "source_ft": "first",
        "seed": 3,
        "masks": [
            {"layers": 0, "top": 0.3, "sign": "target_shift"},
            {"match": "*embed*", "rows": "0-9"},
            {"match": "*", "drop": 0.5},
        ],
    },
    "kept": {
        "target": "m2",
        "source_base": "m1",
        "source_ft": "first",
        "masks": [{"match": "*up_proj*", "keep": "source_ft"}, {"match": "*norm*", "scale": 0}],
    },
    "wider": {"base": "m2", "source_ft": "first", "output": {"dtype": "float32"}},
    "narrower": {"base": "m2", "source_ft": "first", "output": {"dtype": "float16"}},
}
FIRST = {
    "scaled": {"scaling": 0.3},
    "frozen": {
        "scaling": 0.3,
        "masks": [{"layers": 1, "scale": 0}, {"match": "*embed*", "top": 0.2}],
    },
    "wide": {"scaling": 0.3, "output": {"dtype": "float32"}},
    "half": {"scaling": 0.3, "output": {"dtype": "float16"}},
}


def findings(folder: Path) -> object:
    return json.loads((folder / "mergeengine.json").read_text())["findings"]


@pytest.mark.parametrize("native", ["0", "1"])
@pytest.mark.parametrize("first", list(FIRST))
def test_a_merge_inside_a_merge(here, run, monkeypatch, first, native):
    """Everything a plan may do with it, in one chain: by way of files, and without."""
    monkeypatch.setenv("MERGEENGINE_NATIVE", native)
    embedding = load_file("m1/model.safetensors")
    embedding["model.embed_tokens.weight"][0, :4] = torch.tensor([-0.0, 0.0, -0.0, 1.0])
    save_file(embedding, "m1/model.safetensors")
    document = deepcopy(TWO)
    document["steps"][0]["plan"] |= FIRST[first]
    document["steps"][1:] = [{"id": name, "plan": plan} for name, plan in SECOND.items()]
    write_chain(here, document)
    ended = run()
    assert ended.code == 0, ended.err
    expected = {name: digests(here / "out" / name) for name in SECOND}
    lost = {name: findings(here / "out" / name) for name in SECOND}
    (here / "chain.lock").unlink()
    document["output_root"] = "fused"
    document["steps"][0]["keep"] = False
    write_chain(here, document)
    ended = run()
    assert ended.code == 0, ended.err
    assert not (here / "fused" / "first").exists()
    for name, files in expected.items():
        found = digests(here / "fused" / name)
        for each in (files, found):
            del each["mergeengine.json"]  # says what `first` is: a merge, or files
        assert found == files, name
        assert findings(here / "fused" / name) == lost[name], name
    assert set(run().outcomes.values()) <= {"reused", "fused"}


def test_what_is_fused_is_never_written(here, run, command):
    document = deepcopy(TWO)
    document["steps"][0]["keep"] = False
    write_chain(here, document)
    states = command("chain", "status", "chain.yaml", "--format", "json").states
    assert states == {"first": "fused", "second": "to do"}
    assert run().outcomes == {"first": "fused", "second": "made"}
    assert not (here / "out" / "first").exists()
    steps_of(document)["first"]["plan"]["scaling"] = 0.5
    write_chain(here, document)
    ended = run()
    assert ended.made == ["second"]
    assert ended.reasons["second"] == "first changed"
    assert run().made == []


def test_merges_inside_merges(here, run):
    document = deepcopy(TWO)
    third = {"target": "second", "source_base": "m2", "source_ft": "first", "scaling": 0.7}
    document["steps"].append({"id": "third", "plan": third})
    write_chain(here, document)
    run()
    expected = load_file("out/third/model.safetensors")
    for step in document["steps"][:2]:
        step["keep"] = False
    write_chain(here, {**document, "output_root": "fused"}, "chain.yaml")
    ended = run()
    assert ended.outcomes == {"first": "fused", "second": "fused", "third": "made"}
    found = load_file("fused/third/model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_intermediates_go_when_nobody_needs_them(here, run):
    document = deepcopy(ITERATIVE)
    for step in ("m2_start", "m2_ft", "m3_start"):
        steps_of(document)[step]["keep"] = False
    write_chain(here, document)
    ended = run()
    assert len(ended.made) == 5
    assert {path.name for path in (here / "out").iterdir()} == {"m1_ft", "m3_ft", "logs"}
    before, _ = digests(here / "out"), calls(here)
    ended = run()
    assert ended.outcomes == {
        "m1_ft": "reused", "m2_start": "removed", "m2_ft": "removed",
        "m3_start": "removed", "m3_ft": "reused",
    }  # fmt: skip
    assert (calls(here), digests(here / "out")) == ([], before)
    # What is needed again is made again, and nothing else.
    steps_of(document)["m3_ft"]["run"] = tune("m3_start", 3)
    write_chain(here, document)
    ended = run()
    assert ended.outcomes["m3_start"] == "made"
    assert calls(here) == ["m2_ft", "m3_ft"]
    assert ended.outcomes["m1_ft"] == "reused"
    assert {path.name for path in (here / "out").iterdir()} == {"m1_ft", "m3_ft", "logs"}
    assert run().made == []


def test_with_a_choice_of_steps_nothing_goes_that_another_needs(here, run):
    document = deepcopy(ITERATIVE)
    steps_of(document)["m2_ft"]["keep"] = False
    write_chain(here, document)
    run("--step", "m2_ft")
    assert (here / "out" / "m2_ft").exists()
    calls(here)
    run()
    assert calls(here) == ["m3_ft"]
    assert not (here / "out" / "m2_ft").exists()


def test_a_removed_step_whose_program_gives_something_else_now(here, run):
    """Then what was made of it is out of date, and is made again."""
    document = deepcopy(ITERATIVE)
    later = {"target": "m3", "source_base": "m1", "source_ft": "m1_ft"}
    document["steps"][2:] = [{"id": "later", "plan": later}]
    text = (here / "tune.py").read_text()
    shaky = text.replace("int(amount)", "int(open('amount.txt').read())")
    (here / "shaky.py").write_text(shaky)
    (here / "amount.txt").write_text("1")
    steps_of(document)["m1_ft"] |= {"run": tune("m1", program="shaky.py"), "keep": False}
    write_chain(here, document)
    run()
    (here / "amount.txt").write_text("9")
    steps_of(document)["later"]["plan"]["scaling"] = 0.5
    write_chain(here, document)
    ended = run()
    assert ended.code == 0, ended.err
    assert set(ended.made) == {"m1_ft", "m2_start", "later"}
    assert run().made == []


def test_a_kept_step_that_is_gone_is_made_again(here, run):
    import shutil

    write_chain(here, ITERATIVE)
    run()
    before, _ = digests(here / "out"), calls(here)
    shutil.rmtree(here / "out" / "m2_ft")
    assert run().made == ["m2_ft"]
    assert (calls(here), digests(here / "out")) == (["m2_ft"], before)


def test_another_shape_inside_is_told(here, run):
    make_model(here / "m4", 9)
    tensors = load_file("m4/model.safetensors")
    save_file({**tensors, "model.norm.weight": torch.ones(9)}, here / "m4" / "model.safetensors")
    document = deepcopy(TWO)
    document["models"]["m4"] = "./m4"
    document["steps"][0]["keep"] = False
    document["steps"][1]["plan"]["source_ft"] = "m4"
    write_chain(here, document)
    ended = run()
    assert ended.code == 3
    assert "model.norm.weight: bfloat16 [8] in the target, float32 [9] there" in ended.err
