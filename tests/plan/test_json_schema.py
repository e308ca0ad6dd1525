"""The JSON Schema that editors use: right plans validate, wrong ones do not."""

import re
from pathlib import Path
from typing import Any

import pytest
import test_includes
import test_load
import test_overrides
import test_variables

from mergeengine.chain.recognition import is_chain
from mergeengine.errors import PlanError
from mergeengine.plan import load_plan
from mergeengine.plan.document import place_in, read_yaml
from mergeengine.plan.json_schema import MODELINE, plan_schema
from mergeengine.plan.problems import Problems
from mergeengine.plan.templates import TEMPLATES, template

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
PLANS = [file for file in sorted((ROOT / "plans").glob("*.yaml")) if not is_chain(file)]
RIGHT = {file.name: file.read_text() for file in PLANS} | {
    "full": test_load.FULL,
    "short": test_load.SHORT,
    "overrides": test_overrides.PLAN,
    "variables": test_variables.PLAN,
    "written out": test_variables.WRITTEN_OUT,
    "included": test_includes.A + "include: x.yaml",
    **{
        f"readme {n}": text
        for n, text in enumerate(
            re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
        )
        if "\nsteps:" not in text  # a chain
    },
}
# What a schema cannot know: other files and names, variables, the order of entries, and the like.
BEYOND = re.compile(
    r"(dtype_rule|mask)_never_used|duplicate_key.*|environment_.*|include_(?!empty|not_a|mis|with_mis).*"
    r"|include_missing|key_not_a_word|merge_key|layers_downwards|number_(infinite|nan)"
    r"|reference_single_file|sources_of_one_name|tokenizer_misspelt"
    r"|variable_(?!name|without_value).*"
    r"|mask_without_action|regex_invalid|scaling_bound_negative|scaling_curve|scaling_half_a_curve"
    r"|scaling_layers|scaling_layers_none|scaling_outside|scaling_points"
    r"|scaling_ratio_and_bound|scaling_rule_never_used|scaling_rules"
    r"|scaling_rules_and_numbers|scaling_rules_without_default|selection_of_itself"
    r"|selection_unknown|selection_without_selections|compatibility_and_config|vocabulary_and_tokenizer"
    r"|rename_groups|layer_map_lengths|layer_map_twice"
)


def data(text: str) -> Any:
    node = read_yaml(text, place_in("p.yaml"), Problems())
    return None if node is None else node.plain


def valid(document: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(plan_schema()).is_valid(document))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(plan_schema())


@pytest.mark.parametrize("name", list(RIGHT))
def test_right_plans(name: str) -> None:
    jsonschema.validate(data(RIGHT[name]), plan_schema(), jsonschema.Draft202012Validator)


@pytest.mark.parametrize("kind", list(TEMPLATES))
def test_what_init_writes(kind: str, tmp_path: Path) -> None:
    text = template(kind)
    assert text.startswith(f"{MODELINE}\n")
    jsonschema.validate(data(text), plan_schema(), jsonschema.Draft202012Validator)
    (tmp_path / "plan.yaml").write_text(text)
    plan = load_plan(tmp_path / "plan.yaml")
    assert plan.warnings == ()


def test_wrong_plans() -> None:
    accepted, refused = [], []
    for file in sorted(GOLDEN.glob("*.yaml")):
        try:
            document = data(file.read_text(encoding="utf-8"))
        except (PlanError, UnicodeDecodeError):
            continue
        (accepted if valid(document) else refused).append(file.stem)
    assert [name for name in accepted if not BEYOND.fullmatch(name)] == []
    assert [name for name in refused if BEYOND.fullmatch(name)] == []
    assert len(refused) > 40


def test_every_form_of_a_value() -> None:
    start: dict[str, Any] = {"version": 1, "base": "org/a", "source_ft": "./b"}
    for right in (
        {
            "masks": [
                {"layers": 4, "scale": 0},
                {"layers": ["0-3", "28-"], "match": "*x", "scale": 1},
            ]
        },
        {"output": {"dtype": "bfloat16", "shard_size": 4096, "tokenizer": "org/x@main"}},
        {
            "output": {
                "dtype": [{"match": ["*a", "*b"], "dtype": "float32"}],
                "shard_size": "1.5 GiB",
            }
        },
        {"scaling": "${x}", "vars": {"x": [1, {"y": 2}]}, "masks": "${masks}"},
        {"masks": [{"layers": "0-${last}", "scale": "${env:SCALE}"}], "on_extra": "${extra}"},
    ):
        assert valid(start | right), right
    for wrong in (
        {"scaling": "0.5"},
        {"scalling": 1},
        {"target": "org/x"},
        {"masks": [{"layers": "x", "scale": 0}]},
        {"masks": [{"layers": []}]},
        {"masks": {"layers": 1, "scale": 0}},
        {"output": {"dtype": "bf16"}},
        {"output": {"shard_size": "many"}},
        {"output": {"tokenizer": "a/b/c"}},
        {"version": 2},
        {"version": "1"},
        {"base": "https://huggingface.co/org/a"},
        {"on_missing": "skip"},
        {"on_nonfinite": "skip"},
        {"sources": [{"source_ft": "org/x"}]},
        {"vars": {"a-b": 1}},
        {"include": []},
    ):
        assert not valid(start | wrong), wrong
    assert not valid({"version": 1, "base": "org/a"})
    assert valid({"include": "a.yaml"}), "another file may have what is missing"


def test_an_editor_has_something_to_say() -> None:
    schema = plan_schema()
    for name, form in schema["properties"].items():
        assert form.get("description"), name
    assert schema["properties"]["on_extra"]["anyOf"][0]["enum"] == ["error", "ignore", "copy"]
    assert schema["properties"]["scaling"]["default"] == 1.0
