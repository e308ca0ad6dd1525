"""What shows a chain: expand, explain, graph, schema, init, lock, validate."""

import json
import re
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from chain_files import ITERATIVE, steps_of, tune, write_chain

from mergeengine.chain.json_schema import FILE, chain_schema
from mergeengine.chain.load import load_chain, parse_chain
from mergeengine.chain.recognition import is_chain
from mergeengine.chain.starter import CHAIN
from mergeengine.errors import PlanError
from mergeengine.plan.document import place_in, read_yaml
from mergeengine.plan.problems import Problems

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
SUGAR = {
    "version": 1,
    "name": "sugar",
    "vars": {"strength": 0.5, "languages": ["de", "fr"]},
    "models": {"m1": "./m1", "m2": "./m2", "m3": "./m3"},
    "steps": [
        {
            "iterative": {
                "bases": ["m1", "m2", "m3"],
                "finetune": tune("input"),
                "plan": {"scaling": "${strength}"},
                "keep_starts": False,
            }
        },
        {"direct": {"bases": ["m1", "m2", "m3"], "finetune": tune("input"), "prefix": "x"}},
        {"matrix": {"versions": ["m1", "m2", "m3"], "finetuned": ["m1_ft", "m2_ft", "m3_ft"]}},
        {
            "foreach": {"language": "${languages}", "amount": [1, 2]},
            "steps": [
                {
                    "id": "sft_${language}_${amount}",
                    "run": {"command": ["tune", "{m1}", "{output}", "${amount}", "$$5"]},
                },
                {
                    "id": "on_${language}_${amount}",
                    "plan": {
                        "target": "m3",
                        "source_base": "m1",
                        "source_ft": "sft_${language}_${amount}",
                    },
                },
            ],
        },
    ],
}


def test_expand_shows_plain_steps_that_are_the_same_chain(here, command):
    write_chain(here, SUGAR)
    text = command("plan", "--expand", "chain.yaml").out
    plain, sugar = parse_chain(text, "chain.yaml"), load_chain("chain.yaml")
    assert plain.steps == sugar.steps
    assert set(yaml.safe_load(text)) == {"version", "name", "models", "steps"}
    for step in yaml.safe_load(text)["steps"]:
        assert set(step) <= {"id", "run", "plan", "keep"}
    assert command("plan", "--expand", "chain.yaml").out == text
    (here / "plain.yaml").write_text(text)
    assert command("plan", "--expand", "plain.yaml").out == text


def test_the_schemes_of_the_papers():
    steps = {step.id: step for step in parse_chain(yaml.safe_dump(SUGAR), "chain.yaml").steps}

    def merged(step):
        plan = steps[step].work.plan
        source = plan.sources[0]
        texts = plan.target, source.source_base, source.source_ft
        return tuple(reference.text.removeprefix("./") for reference in texts)

    def tuned(step):
        return next(a for a in steps[step].work.arguments if a in ("{m1}", "{m2}", "{m3}") or (
            a.startswith("{") and a != "{output}"))  # fmt: skip

    assert [tuned(f"m{n}_ft") for n in (1, 2, 3)] == ["{m1}", "{m2_start}", "{m3_start}"]
    assert merged("m2_start") == ("m2", "m1", "m1_ft")
    assert merged("m3_start") == ("m3", "m2", "m2_ft")
    assert not steps["m3_start"].keep
    assert [tuned(f"x_m{n}_plain") for n in (1, 2)] == ["{m1}", "{m2}"]
    assert merged("x_m3_direct_start") == ("m3", "m2", "x_m2_plain")
    assert tuned("x_m3_direct_ft") == "{x_m3_direct_start}"
    pairs = {name: merged(name) for name in steps if "_ft_on_" in name}
    assert pairs == {
        f"m{i}_ft_on_m{j}": (f"m{j}", f"m{i}", f"m{i}_ft")
        for i in (1, 2, 3)
        for j in (1, 2, 3)
        if i != j
    }
    assert steps["sft_fr_2"].work.arguments == ("tune", "{m1}", "{output}", "2", "$5")
    assert steps["m2_start"].work.plan.document["scaling"] == 0.5


def test_steps_may_stand_in_any_order(here):
    document = {**ITERATIVE, "steps": ITERATIVE["steps"][::-1]}
    write_chain(here, document)
    assert [step.id for step in load_chain("chain.yaml").steps] == [
        "m1_ft", "m2_start", "m2_ft", "m3_start", "m3_ft",
    ]  # fmt: skip


def test_a_plan_of_a_file(here, command):
    (here / "plans").mkdir()
    (here / "plans" / "carry.yaml").write_text(
        "version: 1\nvars: {strength: 0.5}\ntarget: new\nsource_base: ../m1\nsource_ft: tuned\n"
        "scaling: ${strength}\n"
    )
    steps = [
        {"id": "tuned", "run": tune("m1")},
        {"id": "one", "plan": "plans/carry.yaml", "output": {"dtype": "float32"}},
        {"id": "two", "plan": {"include": "plans/carry.yaml", "vars": {"strength": "${s}"}}},
    ]
    models = {"new": "./m2", "m1": "./m1"}
    document = {"version": 1, "vars": {"s": 0.25}, "models": models, "steps": steps}
    write_chain(here, document)
    chain = load_chain("chain.yaml")
    assert chain.warnings == ()
    assert chain["one"].work.plan.document["scaling"] == 0.5
    assert chain["two"].work.plan.document["scaling"] == 0.25
    assert chain["two"].work.plan.target.path == here / "m2"
    assert chain["two"].work.plan.sources[0].source_base.path == here / "m1"
    assert chain["two"].uses == ("tuned",)
    ended = command("run", "chain.yaml", "--allow-commands", "--set", "s=0.75")
    assert ended.code == 0
    ended = command("explain", "chain.yaml", "--step", "two", "--set", "s=0.75")
    assert "0.75" in ended.out
    (here / "plans" / "carry.yaml").write_text(
        (here / "plans" / "carry.yaml").read_text().replace("source_ft: tuned", "source_ft: tund")
    )
    ended = command("validate", "chain.yaml")
    assert ended.code == 2
    assert "plans/carry.yaml:5:12: there is no step and no model `tund`; did you mean `tuned`?" in (
        ended.err
    )
    assert "included by chain.yaml:" in ended.err


def test_explain_says_what_is_inside(here, command):
    document = {
        "version": 1,
        "models": {"m1": "./m1", "m2": "./m2", "m3": "./m3"},
        "steps": [
            {
                "id": "first",
                "plan": {"target": "m1", "source_base": "m2", "source_ft": "m3"},
                "keep": False,
            },
            {"id": "second", "plan": {"target": "first", "source_base": "m3", "source_ft": "m2"}},
        ],
    }
    write_chain(here, document)
    ended = command("explain", "chain.yaml", "--step", "second", "*norm*")
    assert ended.code == 0
    assert "target + 1 · (source_ft" in ended.out
    ended = command("explain", "chain.yaml")
    assert ended.code == 2
    assert "which merge of the chain to explain: first, second" in ended.err
    assert "did you mean `second`" in command("explain", "chain.yaml", "--step", "secnd").err


def test_graph(here, command):
    document = deepcopy(ITERATIVE)
    document["steps"] = document["steps"][:2]
    document["steps"].append({"id": "ext", "external": {"about": "x", "uses": ["m2_start"]}})
    document["steps"].append({"id": "score", "evaluate": {"model": "ext", "tasks": ["a"]}})
    write_chain(here, document)
    assert command("chain", "graph", "chain.yaml").out == (
        "flowchart LR\n"
        '    n0[("m1")]\n    n1[/"m1_ft"/]\n    n2[("m2")]\n    n3["m2_start"]\n'
        '    n4{{"ext"}}\n    n5(["score"])\n'
        "    n0 --> n1\n    n2 --> n3\n    n0 --> n3\n    n1 --> n3\n    n3 --> n4\n    n4 --> n5\n"
    )
    out = command("chain", "graph", "chain.yaml", "--format", "dot").out
    assert out.startswith("digraph {\n")
    assert '"m1_ft" [label="m1_ft", shape=parallelogram]' in out
    assert '"m1" -> "m2_start"' in out


def test_status_and_dry_run_are_the_plan_of_a_chain(here, command, run):
    write_chain(here, ITERATIVE)
    table = command("chain", "status", "chain.yaml").out
    assert table.splitlines()[0].split()[:4] == ["m1_ft", "command", "to", "do"]
    assert command("plan", "chain.yaml").out == table
    assert command("run", "chain.yaml", "--dry-run").out == table
    assert not (here / "out").exists()
    assert not (here / "chain.lock").exists()
    (here / "tune.py").unlink()
    ended = command("chain", "status", "chain.yaml")
    assert ended.code == 0
    assert "the file tune.py cannot be read: No such file" in ended.out
    ended = run()
    assert (ended.code, ended.outcomes) == (2, {"m1_ft": "failed"})


def test_lock_pins_the_models_of_a_chain(here, command, run):
    write_chain(here, ITERATIVE)
    assert command("lock", "chain.yaml").code == 0
    models = json.loads((here / "chain.lock").read_text())["models"]
    assert set(models) == {"./m1", "./m2", "./m3"}
    assert run("--locked").code == 0
    before = json.loads((here / "chain.lock").read_text())
    assert command("lock", "chain.yaml").code == 0
    assert json.loads((here / "chain.lock").read_text()) == before
    assert command("lock", "--check", "chain.yaml").code == 0
    (here / "m2" / "config.json").write_text("{}")
    assert command("lock", "--check", "chain.yaml").code == 7


def test_a_chain_is_told_from_a_plan(tmp_path):
    for text, chain in (
        ("version: 1\nsteps: []\n", True),
        ("version: 1\n# steps:\ntarget: x\n", False),
        ('{"version": 1, "steps": []}', True),
        ("vars:\n  steps: 3\n", False),
    ):
        path = tmp_path / "x.yaml"
        path.write_text(text)
        assert is_chain(path) is chain
    assert not is_chain(tmp_path / "nowhere.yaml")


def test_init_writes_a_chain(here, command):
    ended = command("init", "chain")
    assert (ended.code, ended.out) == (0, "")
    assert (here / "chain.yaml").read_text() == CHAIN
    assert json.loads((here / FILE).read_text()) == chain_schema()
    chain = load_chain("chain.yaml")
    assert [step.id for step in chain.steps] == ["old_ft", "new_start", "new_ft"]
    assert command("validate", "chain.yaml").out == "chain.yaml: OK\n"
    assert command("schema", "chain").out == (here / FILE).read_text()


def test_what_is_commented_out_there_is_right_too():
    text = re.sub(r"(?m)^# (- id|  \w)", r"  \1", CHAIN)
    steps = parse_chain(text, "chain.yaml").steps
    assert {step.kind for step in steps} == {"command", "merge", "external", "evaluation"}


@pytest.mark.parametrize(
    "path",
    [path for path in sorted((ROOT / "plans").glob("*.yaml")) if is_chain(path)],
    ids=lambda path: path.name,
)
def test_shipped_chains(path):
    assert load_chain(path).warnings == ()


def data(text: str) -> object:
    node = read_yaml(text, place_in("c.yaml"), Problems())
    return None if node is None else node.plain


def test_the_schema_takes_right_chains_and_refuses_wrong_ones():
    jsonschema = pytest.importorskip("jsonschema")
    schema = chain_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    right = [CHAIN, yaml.safe_dump(SUGAR), yaml.safe_dump(ITERATIVE)]
    right += [path.read_text() for path in sorted((ROOT / "plans").glob("chain-*.yaml"))]
    for text in right:
        jsonschema.validate(data(text), schema, jsonschema.Draft202012Validator)
    refused = set()
    for path in sorted(GOLDEN.glob("*.yaml")):
        try:
            document = data(path.read_text())
        except PlanError:
            continue
        if not jsonschema.Draft202012Validator(schema).is_valid(document):
            refused.add(path.stem)
    by_form = {"keys", "kinds", "id_missing", "empty", "not_a_mapping", "plan_inside", "schemes"}
    assert by_form <= refused
    assert not {"cycle", "unknown_ids", "unused_step", "evaluation_taken"} & refused
    for name, form in schema["properties"].items():
        assert form.get("description"), name


def test_set_reaches_into_a_chain(here):
    write_chain(here, SUGAR)
    chain = load_chain("chain.yaml", ["strength=0.25", "name=other", "steps.1.direct.prefix=y"])
    assert (chain.name, "y_m3_direct_ft" in [step.id for step in chain.steps]) == ("other", True)
    assert chain["m2_start"].work.plan.document["scaling"] == 0.25
    assert steps_of(chain.document)["m2_start"]["plan"]["scaling"] == 0.25
