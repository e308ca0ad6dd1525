"""``vars``, ``${name}``, ``${env:NAME}`` and ``--set``."""

import pytest

from mergeengine.errors import PlanError
from mergeengine.plan import Plan, parse_plan
from mergeengine.values.anatomy import lone

PLAN = """\
version: 1
name: ${family}-at-${strength}
vars:
  family: llama
  strength: 1e-1
  last: 3
  frozen: [{layers: "0-${last}", scale: 0}]
  old: org/${family}-old
base: ${old}
source_ft: org/${family}-ft
scaling: ${strength}
masks: ${frozen}
"""
WRITTEN_OUT = """\
version: 1
name: llama-at-1e-1
base: org/llama-old
source_ft: org/llama-ft
scaling: 0.1
masks: [{layers: "0-3", scale: 0}]
"""


def read(*overrides: str) -> Plan:
    return parse_plan(PLAN, "p.yaml", overrides)


def test_values_stand_where_their_names_stood() -> None:
    plan = read()
    assert plan.document == parse_plan(WRITTEN_OUT, "p.yaml").document
    assert plan.warnings == ()
    assert plan.substituted.variables == {
        "family": "llama",
        "frozen": [{"layers": "0-3", "scale": 0}],
        "last": 3,
        "old": "org/llama-old",
        "strength": 0.1,
    }
    assert plan.substituted.document() == {"vars": plan.substituted.variables}


def test_places_are_those_of_the_line_that_decides() -> None:
    plan = read()
    assert str(plan.sources[0].scaling.at("x").position) == "p.yaml:11:10"
    assert str(plan.masks.entries[0].position) == "p.yaml:7:12"


@pytest.mark.parametrize("override", ["vars.strength=0.5", "strength=0.5"])
def test_set(override: str) -> None:
    plan = read(override)
    assert plan.sources[0].scaling.at(lone("x")).value == 0.5
    assert plan.name == "llama-at-0.5"


def test_set_inside_a_variable() -> None:
    assert read("frozen.0.scale=0.25").masks.at(lone("layers.0.w")).value == 0.25


def test_a_key_goes_before_a_variable_of_its_name() -> None:
    text = PLAN.replace("strength", "scaling")
    plan = parse_plan(text, "p.yaml", ["scaling=0.5"])
    assert (plan.sources[0].scaling.at(lone("x")).value, plan.name) == (0.5, "llama-at-1e-1")
    assert parse_plan(text, "p.yaml", ["vars.scaling=0.5"]).name == "llama-at-0.5"


def test_a_variable_may_be_left_to_the_command_line() -> None:
    text = "version: 1\nbase: org/a\nsource_ft: org/b\nscaling: ${s}\n"
    assert parse_plan(text, "p.yaml", ["vars.s=2"]).sources[0].scaling.at(lone("x")).value == 2
    assert parse_plan(text, "p.yaml", ["scaling=2"]).substituted.document() == {}
    with pytest.raises(PlanError) as raised:
        parse_plan(text, "p.yaml", ["vars.s=2", "vars.ss=3"])
    assert str(raised.value) == (
        "--set vars.ss=3: no text of the plan has `${ss}`; did you mean `s`?"
    )


def test_set_cannot_include() -> None:
    with pytest.raises(PlanError, match="`include` cannot be set"):
        read("include=other.yaml")


def test_unused_variables_are_told() -> None:
    plan = parse_plan(PLAN.replace("  last: 3", "  last: 3\n  lost: 4"), "p.yaml")
    assert plan.warnings == (
        "p.yaml:7:3: the variable `lost` is never used: `${lost}` would use it",
    )
    assert read("scaling=1", "name=x").warnings == (), "used, where nothing is set"


def test_dollar_signs() -> None:
    text = "version: 1\nvars: {a: 1}\nname: $${a} $$ ${a}\nbase: o/a\nsource_ft: o/b\n"
    assert parse_plan(text, "p.yaml").name == "${a} $ 1"


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRENGTH", "0.25")
    monkeypatch.setenv("WHO", "ann ${STRENGTH}")
    text = (
        "version: 1\nbase: o/a\nsource_ft: o/b\nscaling: ${env:STRENGTH}\n"
        "name: of ${env:WHO}, ${env:STRENGTH}\n"
    )
    plan = parse_plan(text, "p.yaml")
    assert plan.sources[0].scaling.at(lone("x")).value == 0.25
    assert plan.name == "of ann ${STRENGTH}, 0.25", "what is substituted is not read again"
    assert plan.substituted.document() == {
        "environment": {"STRENGTH": "0.25", "WHO": "ann ${STRENGTH}"}
    }
    monkeypatch.setenv("STRENGTH", "strong")
    with pytest.raises(PlanError) as raised:
        parse_plan(text, "p.yaml")
    assert "found the text 'strong' (`${env:STRENGTH}`)" in str(raised.value)
    monkeypatch.setenv("STRENGTH", "1")
    with pytest.raises(PlanError) as raised:
        parse_plan(text + "on_extra: ${env:WHO}\n", "p.yaml", ["name=${env:STRENGTH}"])
    assert "found the number 1 (`${env:STRENGTH}`); in a longer text it would be one" in str(
        raised.value
    )


@pytest.mark.parametrize("value", ["1", "0.5", "true", "[a, 1]", "{a: {b: 1}}"])
def test_a_whole_value_keeps_its_type(value: str) -> None:
    text = f"version: 1\nvars: {{a: {value}}}\nname: ${{a}}\nbase: o/a\nsource_ft: o/b\n"
    with pytest.raises(PlanError) as raised:
        parse_plan(text, "p.yaml")
    assert "`name`: expected a text" in str(raised.value)
    assert "(`${a}`, p.yaml:2:11)" in str(raised.value)
    assert parse_plan(text, "p.yaml", [f"a='{value}'"]).name == value


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ("  v0: [x, x, x, x, x, x, x, x, x]\n", "[" + ", ".join(["'${v%d}'"] * 9) + "]"),
        ("  v0: xxxxxxxxxx\n", "'" + "${v%d}" * 10 + "'"),
    ],
)
def test_variables_that_laugh(variables: str, name: str) -> None:
    for n in range(12):
        variables += f"  v{n + 1}: {name.replace('%d', str(n))}\n"
    with pytest.raises(PlanError, match="the variables make"):
        parse_plan(f"version: 1\nvars:\n{variables}name: ${{v12}}\n", "p.yaml")


def test_a_long_chain_of_variables() -> None:
    variables = "".join(f"  v{n}: ${{v{n + 1}}}\n" for n in range(5000))
    with pytest.raises(PlanError, match="more than 32 times"):
        parse_plan(f"version: 1\nvars:\n{variables}  v5000: x\nname: ${{v0}}\n", "p.yaml")
