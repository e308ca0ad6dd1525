"""The plans that are shipped, and those that the README shows, are valid plans."""

import re
from pathlib import Path

import pytest

from mergeengine.chain.load import is_chain, load_chain
from mergeengine.plan import load_plan, parse_plan
from mergeengine.plan.forms import Keys
from mergeengine.values.anatomy import lone

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((ROOT / "plans").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_plan_is_valid(path: Path) -> None:
    assert (load_chain(path) if is_chain(path) else load_plan(path)).name


def test_the_plans_of_the_readme_are_valid() -> None:
    plans = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert plans
    chains = [text for text in plans if "\nsteps:" in text]
    assert len(chains) == 1
    read = [parse_plan(text, ROOT / "plan.yaml") for text in plans if text not in chains]
    assert all(plan.warnings == () for plan in read)
    for plan in read[:1]:
        assert plan.masks.at(lone("model.layers.2.mlp.up_proj.weight")).value == 0.0
        assert plan.masks.at(lone("model.layers.9.mlp.up_proj.weight")).value == 0.5


def test_the_scalings_and_selectors_of_the_readme_are_valid() -> None:
    head = "version: 1\nbase: org/old\nsource_ft: ./tuned\n"
    scalings = re.findall(r"`(scaling: .*?)`", README)
    assert len(scalings) > 10
    for text in scalings:
        assert parse_plan(f"{head}{text}\n", "p.yaml").sources[0].scaling
    selectors = README.split("| condition | chooses | example |")[1].split("\n\n")[0]
    rows = [row.replace("\\|", "\0").split("|") for row in selectors.splitlines()[2:]]
    assert len(rows) == 6
    for _, keys, _, examples, _ in rows:
        for example in re.findall("`(.*?)`", examples.replace("\0", "|")):
            for key in re.findall("`(.*?)`", keys):
                entry = example if example.startswith("{not") else f"{{{key}: {example}}}"
                masks = f"masks: [{{all: {entry}, scale: 0}}]\n"
                plan = f"{head}selections: {{upper_mlp: {{kind: mlp}}}}\n{masks}"
                assert parse_plan(plan, "p.yaml").masks.entries


def test_the_readme_knows_every_key() -> None:
    from mergeengine.plan import schema
    from mergeengine.plan.forms import written_keys

    language = README.split("## A plan")[1].split("## What you can rely on")[0]
    models = _models(Keys)
    assert {schema.PlanKeys, schema.MaskKeys, schema.RenameKeys, schema.AdapterKeys} <= models
    for model in models:
        for name in written_keys(model):
            assert re.search(rf"\b{name}\b", language), (model, name)


def _models(keys: type[Keys]) -> set[type[Keys]]:
    """Every mapping of a plan, the forms of parameters too."""
    below = keys.__subclasses__()
    return {each for each in below if "plan" in each.__module__} | {
        inner for each in below for inner in _models(each)
    }
