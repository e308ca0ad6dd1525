"""``--set key=value``."""

import pytest

from mergeengine.errors import PlanError
from mergeengine.lazy.dtypes import FLOAT32
from mergeengine.plan import Plan, parse_plan
from mergeengine.values.anatomy import lone

PLAN = """\
version: 1
target: org/new
sources:
  - {source_base: org/old, source_ft: org/a, scaling: 0.5}
  - {source_base: org/old, source_ft: org/b}
masks:
  - {match: "*a*", scale: 0}
  - {match: "*b*", scale: 0.5}
"""


def read(*overrides: str) -> Plan:
    return parse_plan(PLAN, "p.yaml", overrides)


def test_values_replace_and_add() -> None:
    plan = read("sources.0.scaling=1e-3", "sources.1.scaling=.25", "name=other")
    assert [source.scaling.at(lone("x")).value for source in plan.sources] == [1e-3, 0.25]
    assert plan.name == "other"
    assert str(plan.sources[0].scaling.at(lone("x")).position) == "--set sources.0.scaling=1e-3"


def test_missing_sections_are_made() -> None:
    plan = read("output.dtype=float32", "output.path=o", "numerics.compute_dtype=float64")
    assert plan.output.dtype.at(lone("x")) == FLOAT32
    assert plan.document["output"] == {"dtype": "float32", "path": "o"}
    assert plan.numerics.compute_dtype == "float64"


def test_lists_and_mappings() -> None:
    assert read("masks=[]").masks.entries == ()
    plan = read('masks=[{match: "*a*", scale: 0.125}]')
    assert plan.masks.at(lone("xax")).value == 0.125
    assert str(plan.masks.at(lone("xax")).position) == '--set masks=[{match: "*a*", scale: 0.125}]'
    assert read("masks.1.scale=0.75").masks.at(lone("b")).value == 0.75


def test_the_last_one_wins() -> None:
    assert read("name=a", "name=b").name == "b"


def test_an_override_may_mend_the_plan() -> None:
    broken = PLAN.replace("scaling: 0.5", "scaling: high")
    assert (
        parse_plan(broken, "p.yaml", ["sources.0.scaling=0.5"])
        .sources[0]
        .scaling.at(lone("x"))
        .value
        == 0.5
    )


def test_text_and_document() -> None:
    plan = read("name=other")
    assert plan.text == PLAN, "the file's text, without --set"
    assert plan.document["name"] == "other"


def test_setting_through_an_alias_changes_one_place() -> None:
    text = (
        "version: 1\nbase: org/old\nsources:\n"
        "  - {source_ft: org/a, masks: &m [{match: '*a*', scale: 0}]}\n"
        "  - {source_ft: org/b, masks: *m}\n"
    )
    plan = parse_plan(text, "p.yaml", ["sources.1.masks.0.scale=0.5"])
    assert [source.masks.at(lone("a")).value for source in plan.sources] == [0.0, 0.5]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scalling=1", "unknown key `scalling`; did you mean `scaling`?"),
        ("outptu.dtype=float32", "unknown key `outptu`; did you mean `output`?"),
        ("output.dtyp=float32", "unknown key `dtyp`; did you mean `dtype`?"),
        ("scaling", "expected key=value, for example --set scaling=0.5"),
        ("=1", "expected key=value, for example --set scaling=0.5"),
        ("output..path=x", "expected key=value, for example --set scaling=0.5"),
        ("name=", "`name` has no value"),
        ("name=[", "a value is expected here"),
        ("name=[a", "this bracket is never closed"),
        ("name=*x", "`*x` begins with *: a glob must be in quotes"),
        ("output={path: a, path: b}", "the key `path` stands twice"),
        (
            "target=a/b/c",
            "`target`: `a/b/c` is not a model reference: a local path begins with ./ ../ / or ~; "
            "did you mean `./a/b/c`?",
        ),
        (
            "sources=[{name: a, source_base: o/x, source_ft: o/a}, "
            "{name: a, source_base: o/x, source_ft: o/b}]",
            "two sources are named `a`; names must differ",
        ),
        ("sources.2.scaling=1", "`sources` has no entry `2`: it has 0 to 1"),
        ("sources.first.scaling=1", "`sources` has no entry `first`: it has 0 to 1"),
        ("sources.-1.scaling=1", "`sources` has no entry `-1`: it has 0 to 1"),
        ("target.repo=x", "`target` has no keys: it is the text 'org/new'"),
        (
            "on_extra=skip",
            "`on_extra`: expected one of error, ignore, copy, found the text 'skip'",
        ),
        ("masks.0.layers=5-2", "`masks.0.layers`: the layers 5-2 run downwards; write 2-5"),
    ],
)
def test_what_is_wrong_names_the_override(override: str, message: str) -> None:
    with pytest.raises(PlanError) as raised:
        read(override)
    assert str(raised.value) == f"--set {override}: {message}"


def test_an_override_can_contradict_the_file() -> None:
    with pytest.raises(PlanError) as raised:
        read("base=org/x")
    assert str(raised.value) == (
        "p.yaml:2:1: `target` cannot stand beside `base` (--set base=org/x), which gives it "
        "already\n    target: org/new\n    ^"
    )


def test_problems_of_the_file_come_first() -> None:
    with pytest.raises(PlanError) as raised:
        parse_plan(PLAN + "nam: x\n", "p.yaml", ["scaling", "on_extra=skip"])
    lines = [line for line in str(raised.value).splitlines() if not line.startswith(" ")]
    assert [line.partition(": ")[0] for line in lines] == [
        "p.yaml:9:1",
        "--set on_extra=skip",
        "--set scaling",
    ]
