"""A chain makes what its steps made by hand would be, once, and again where something changed."""

import os
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml
from chain_files import ITERATIVE, TUNE, calls, digests, steps_of, tune, write_chain
from safetensors.torch import load_file, save_file

import mergeengine

ALL = ["m1_ft", "m2_start", "m2_ft", "m3_start", "m3_ft"]


def by_hand(folder: Path, name: str, target: str, base: str, ft: str) -> dict[str, torch.Tensor]:
    """A merge as a plan of its own."""
    plan = {"version": 1, "target": target, "source_base": base, "source_ft": ft}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**plan, "output": {"path": f"./by_hand/{name}"}}))
    return load_file(mergeengine.run(path).output / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_algorithm_1(here, run):
    write_chain(here, ITERATIVE)
    assert run().made == ALL
    assert calls(here) == ["m1_ft", "m2_ft", "m3_ft"]
    merged = by_hand(here, "m2_start", "./m2", "./m1", "./out/m1_ft")
    assert same(merged, load_file("out/m2_start/model.safetensors"))
    merged = by_hand(here, "m3_start", "./m3", "./m2", "./out/m2_ft")
    assert same(merged, load_file("out/m3_start/model.safetensors"))
    assert mergeengine.verify("out/m3_ft") == []


def test_the_scheme_is_the_same_chain(here, run):
    write_chain(here, ITERATIVE)
    run()
    before = digests(here / "out")
    calls(here)
    scheme = {"bases": ["m1", "m2", "m3"], "finetune": tune("input")}
    write_chain(here, {**ITERATIVE, "steps": [{"iterative": scheme}]})
    assert run().made == []
    assert (calls(here), digests(here / "out")) == ([], before)


def test_nothing_is_done_twice(here, run):
    write_chain(here, ITERATIVE)
    run()
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*") if path.is_file()}
    ended = run()
    assert set(ended.outcomes.values()) == {"reused"}
    after = {path: path.stat().st_mtime_ns for path in here.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("step", "changed", "made", "reason"),
    [
        ("m1_ft", {"run": tune("m1", 2)}, ALL, "its command changed"),
        ("m2_start", {"plan": {"scaling": 0.5}}, ALL[1:], "its plan changed"),
        ("m2_ft", {"run": tune("m2_start", 2)}, ALL[2:], "its command changed"),
        ("m3_start", {"plan": {"scaling": 0.5}}, ALL[3:], "its plan changed"),
        ("m3_ft", {"run": {**tune("m3_start"), "env": {"A": "1"}}}, ["m3_ft"], "its environment "),
    ],
)
def test_a_changed_line_runs_what_depends_on_it(here, run, command, step, changed, made, reason):
    write_chain(here, ITERATIVE)
    run()
    calls(here)
    document = deepcopy(ITERATIVE)
    for key, value in changed.items():
        steps_of(document)[step][key] |= value
    write_chain(here, document)
    foreseen = command("chain", "status", "chain.yaml", "--format", "json")
    assert foreseen.states == {
        name: "up to date" if name not in made else "to do" if name == step else "after others"
        for name in ALL
    }
    assert reason in foreseen.reasons[step]
    if "env" in changed.get("run", {}):  # the same bytes come out
        assert run().made == made
        return
    ended = run()
    assert ended.made == made
    assert calls(here) == [name for name in made if name.endswith("_ft")]
    if len(made) > 1:
        assert f"{step} changed" in ended.reasons[made[1]]
    assert set(run().outcomes.values()) == {"reused"}


def test_comments_and_layout_change_nothing(here, run):
    path = write_chain(here, ITERATIVE)
    run()
    path.write_text("# more words\n" + path.read_text().replace("name: lineage", "name:  lineage"))
    for file in (here / "m1").iterdir():  # written anew, with the same in it
        os.utime(file)
    assert run().made == []


def test_what_comes_out_as_before_ends_the_matter(here, run):
    write_chain(here, ITERATIVE)
    run()
    (here / "tune.py").write_text(TUNE + "# a comment\n")
    calls(here)
    ended = run()
    assert calls(here) == ["m1_ft", "m2_ft", "m3_ft"]  # each lists the file
    assert ended.made == ["m1_ft", "m2_ft", "m3_ft"]
    assert ended.reasons["m1_ft"] == "the file tune.py changed"


def test_a_changed_model_runs_what_takes_it(here, run):
    write_chain(here, ITERATIVE)
    run()
    (here / "m3" / "config.json").write_text((here / "m3" / "config.json").read_text() + " ")
    assert run().made == ["m3_start"]  # its own config is written out anew, and is the same


def test_a_chain_moves_with_its_outputs(here, run):
    write_chain(here, ITERATIVE)
    run()
    calls(here)
    (here / "out").rename(here / "elsewhere")
    write_chain(here, {**ITERATIVE, "output_root": "elsewhere"})
    assert run().made == []
    assert calls(here) == []


def test_steps_are_chosen(here, run):
    write_chain(here, ITERATIVE)
    assert list(run("--step", "m2_ft").outcomes) == ["m1_ft", "m2_start", "m2_ft"]
    document = deepcopy(ITERATIVE)
    steps_of(document)["m1_ft"]["run"] = tune("m1", 2)
    write_chain(here, document)
    calls(here)
    ended = run("--from", "m3_start")  # m1_ft and what it changes stay as they are
    assert ended.made == ["m3_start", "m3_ft"]
    assert list(ended.outcomes) == ["m3_start", "m3_ft"]
    assert run("--from", "m3_start").made == []
    assert run().made == ALL


def test_force_makes_the_chosen_step_anew(here, run):
    write_chain(here, ITERATIVE)
    run()
    before = digests(here / "out")
    calls(here)
    assert run("--step", "m2_ft", "--force").made == ["m2_ft"]
    assert calls(here) == ["m2_ft"]
    assert digests(here / "out") == before
    assert run().made == []
    assert run("--force").made == ALL


def test_a_step_before_that_is_not_there(here, run):
    write_chain(here, ITERATIVE)
    ended = run("--from", "m3_start")
    assert ended.code == 5
    assert "it takes what m2_ft will be, and that is not there" in ended.err


def test_own_outputs_are_replaced_and_others_are_not(here, run):
    write_chain(here, ITERATIVE)
    run()
    document = deepcopy(ITERATIVE)
    steps_of(document)["m3_start"]["plan"]["scaling"] = 0.5
    write_chain(here, document)
    (here / "out" / "m3_start" / "notes.txt").write_text("mine")
    ended = run()
    assert ended.code == 5
    assert "m3_start was changed by hand: notes.txt was added" in ended.err
    assert "--force with --step m3_start replaces it" in ended.err
    assert run("--step", "m3_start", "--force").made == ["m3_start"]
    assert not (here / "out" / "m3_start" / "notes.txt").exists()


@pytest.mark.parametrize("step", ["m1_ft", "m2_start"])
def test_what_another_made_is_not_replaced(here, run, step):
    write_chain(here, ITERATIVE)
    run()
    kept = digests(here / "out" / step)
    (here / "chain.lock").unlink()
    document = deepcopy(ITERATIVE)
    steps_of(document)["m1_ft"]["run"] = tune("m1", 5)
    if step == "m2_start":
        steps_of(document)["m1_ft"]["output"] = {"path": "new/m1_ft"}
    write_chain(here, document)
    ended = run()
    assert ended.code == 5
    assert f"{step} is there and was not made by this chain" in ended.err
    assert digests(here / "out" / step) == kept


def test_without_its_lock_a_chain_knows_its_outputs_again(here, run):
    write_chain(here, ITERATIVE)
    run()
    lock = (here / "chain.lock").read_text()
    (here / "chain.lock").unlink()
    calls(here)
    assert run().made == []
    assert calls(here) == []
    assert (here / "chain.lock").read_text() == lock


def test_two_chains_share_a_step(here, run, command):
    write_chain(here, ITERATIVE)
    run()
    calls(here)
    other = deepcopy(ITERATIVE)
    other["name"] = "other"
    back = {"target": "m1", "source_base": "m2", "source_ft": "m2_ft"}
    other["steps"][3:] = [{"id": "back", "plan": back}]
    write_chain(here, other, "other.yaml")
    ended = command("run", "other.yaml", "--allow-commands", "--format", "json")
    assert ended.outcomes == {"m1_ft": "reused", "m2_start": "reused", "m2_ft": "reused"} | {
        "back": "made"
    }
    assert calls(here) == []
    # What it may use it may not replace with something else: that would be the first one's loss.
    steps_of(other)["m2_start"]["plan"]["scaling"] = 0.5
    (here / "other.lock").unlink()
    write_chain(here, other, "other.yaml")
    assert command("run", "other.yaml", "--allow-commands").code == 5
    assert run().made == []


def test_the_outputs_must_be_the_chains(here, run):
    make = {"id": "m1_ft", "run": tune("m1"), "output": {"path": "./m1"}}
    write_chain(here, {"version": 1, "models": {"m1": "./m1"}, "steps": [make]})
    before = digests(here / "m1")
    assert run("--force").code == 5
    assert digests(here / "m1") == before


def test_locked_inputs(here, run):
    write_chain(here, ITERATIVE)
    assert run("--locked").code == 7
    run()
    assert run("--locked").code == 0
    data = bytearray((here / "m2" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (here / "m2" / "model.safetensors").write_bytes(data)
    ended = run("--locked")
    assert ended.code == 7
    assert "chain.yaml:22:13: ./m2 is not the locked one" in ended.err
    assert run().made == ALL[1:]


def test_chains_and_plans_have_options_of_their_own(here, run, command):
    write_chain(here, ITERATIVE)
    assert "--sweep is an option of plans" in run("--sweep", "scaling=1,2").err
    (here / "plan.yaml").write_text("version: 1\nbase: ./m1\nsource_ft: ./m2\n")
    ended = command("run", "plan.yaml", "--allow-commands")
    assert (ended.code, "option of chains; this is a plan" in ended.err) == (2, True)


def test_a_lock_of_something_else(here, run):
    write_chain(here, ITERATIVE)
    (here / "chain.lock").write_text('{"version": 1, "models": {}, "steps": {"m1_ft": 3}}')
    ended = run()
    assert ended.code == 7
    assert "not the lock of a chain" in ended.err


def test_what_was_found_in_a_step_is_told_as_long_as_it_is_there(here, run):
    spoiled = load_file("m2/model.safetensors")
    spoiled["model.norm.weight"][3] = float("nan")
    save_file(spoiled, "m2/model.safetensors")
    plan = {"target": "m1", "source_base": "m3", "source_ft": "m2", "on_nonfinite": "allow"}
    write_chain(here, {**ITERATIVE, "steps": [{"id": "merged", "plan": plan}]})
    said = "merged: model.norm.weight: 1 computed value is infinite or NaN, at [3]: source_ft"
    first, second = run(), run()
    assert first.made == ["merged"]
    assert second.made == []
    assert said in first.err
    assert said in second.err
