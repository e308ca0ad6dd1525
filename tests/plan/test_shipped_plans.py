"""The plans that are shipped, and those that the README shows, are valid plans."""

import re
from pathlib import Path

import pytest

from mergeengine.chain.load import load_chain
from mergeengine.chain.recognition import is_chain
from mergeengine.plan import load_plan, parse_plan
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
