"""Numbers that differ from tensor to tensor, against formulas written out."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeengine.plan import parse_plan
from mergeengine.values.anatomy import Anatomy
from mergeengine.values.parameters import CURVES, LayerValue, Outside, Schedule
from mergeengine.values.selectors import LayerRange

HEAD = "version: 1\nbase: org/old\nsource_ft: ./tuned\n"
NAMES = ["embed_tokens.w", *(f"h.{n}.{part}.w" for n in range(5) for part in ("mlp", "attn")),
         "norm.w", "lm_head.w"]  # fmt: skip
MODEL = Anatomy.of_names(NAMES)
NUMBERS = st.floats(-4, 4, allow_nan=False)


def resolved(text: str, part: str = "mlp") -> list[float]:
    """Before the layers, the five layers, after them."""
    (source,) = parse_plan(f"{HEAD}scaling: {text}\n", "p.yaml").sources
    names = ["embed_tokens.w", *(f"h.{n}.{part}.w" for n in range(5)), "norm.w"]
    return [source.scaling.at(MODEL.tensor(name)).value for name in names]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.3", [0.3] * 7),
        ("[0.25]", [0.25] * 7),
        ("[0, 1]", [0, 0, 0.25, 0.5, 0.75, 1, 1]),
        ("[0, 1, 0]", [0, 0, 0.5, 1, 0.5, 0, 0]),
        ("[1, 2, 4, 8, 16]", [1, 1, 2, 4, 8, 16, 16]),
        ("{shallow: 0.5, deep: 1.0}", [0.5, 0.5, 0.625, 0.75, 0.875, 1, 1]),
        ("{from: 0, to: 1, curve: quadratic}", [0, 0, 1 / 16, 1 / 4, 9 / 16, 1, 1]),
        ("{from: 0, to: 1, curve: sqrt}", [0, 0, 0.5, 0.5**0.5, 0.75**0.5, 1, 1]),
        ("{from: 4, to: 0, curve: linear}", [4, 4, 3, 2, 1, 0, 0]),
        ("{points: [0, 1], outside: {before: 7}}", [7, 0, 0.25, 0.5, 0.75, 1, 1]),
        ("{shallow: 0, deep: 1, outside: {before: 7, after: 8}}", [7, 0, 0.25, 0.5, 0.75, 1, 8]),
        ('{layers: {"0-1": 0, "2-3": 1.0, "4-": 0.5}}', [0, 0, 0, 1, 1, 0.5, 0.5]),
        ("{layers: {0-1: 0, 2: 1, 3: 0.5, -1: 2}}", [0, 0, 0, 1, 0.5, 2, 2]),
        ('{layers: {"-1": 0.5, odd: 2}, default: 3}', [3, 3, 2, 3, 2, 0.5, 3]),
        ('{layers: {"0, 3-": 2, "1-2": 3}, outside: {after: 9}}', [2, 2, 3, 3, 2, 2, 9]),
        ("[{kind: mlp, value: [0, 1]}, {value: 5}]", [5, 0, 0.25, 0.5, 0.75, 1, 5]),
        ("[{layers: 0, value: 9}, {kind: mlp, value: {shallow: 2, deep: 6}}, {value: 5}]",
         [5, 9, 3, 4, 5, 6, 5]),
        ("[{layers: 0, value: {ratio: 9}}, {kind: mlp, value: {ratio: {shallow: 2, deep: 6}}},"
         " {layers: 0-, value: 7}, {value: {at_most: 5, value: [3, 4]}}]",
         [3, 9, 3, 4, 5, 6, 4]),
    ],
)  # fmt: skip
def test_forms(text: str, values: list[float]) -> None:
    assert resolved(text) == pytest.approx(values, abs=1e-15)


def test_cosine_is_half_a_wave() -> None:
    expected = [0.2 + 0.8 * (1 - math.cos(math.pi * n / 4)) / 2 for n in range(5)]
    assert resolved("{from: 0.2, to: 1.0, curve: cosine}")[1:6] == pytest.approx(expected)


def test_every_decision_says_what_decided_it() -> None:
    text = (
        f"{HEAD}scaling:\n  - {{kind: mlp, value: {{shallow: 0.5, deep: 1.0}}}}\n"
        '  - {kind: attention, value: {layers: {"0-1": 0.25, "2-": 0.75}}}\n  - {value: 0}\n'
    )
    (source,) = parse_plan(text, "p.yaml").sources
    decided = [source.scaling.at(MODEL.tensor(name)) for name in ("h.1.mlp.w", "h.3.attn.w")]
    decided.append(source.scaling.at(MODEL.tensor("norm.w")))
    assert [(str(d.position), d.value, d.text) for d in decided] == [
        ("p.yaml:5:5", 0.625, "kind: mlp, value: {shallow: 0.5, deep: 1} at depth 0.25"),
        ("p.yaml:6:53", 0.75, "kind: attention, value: layers 2-: 0.75"),
        ("p.yaml:7:5", 0.0, "every other tensor, value: 0"),
    ]


def test_set_gives_any_form() -> None:
    plan = parse_plan(HEAD, "p.yaml", ["scaling=[0.2,1.0]"])
    decision = plan.sources[0].scaling.at(MODEL.tensor("h.4.mlp.w"))
    assert (decision.value, str(decision.position)) == (1.0, "--set scaling=[0.2,1.0]")


def test_masks_take_the_same_forms() -> None:
    plan = parse_plan(f"{HEAD}masks: [{{kind: mlp, scale: [0, 1]}}]\n", "p.yaml")
    decision = plan.masks.at(MODEL.tensor("h.1.mlp.w"))
    assert (decision.value, decision.text) == (0.25, "kind: mlp, scale: [0, 1] at depth 0.25")
    assert plan.masks.at(MODEL.tensor("h.1.attn.w")).value == 1.0


@given(st.lists(NUMBERS, min_size=1, max_size=6), st.sampled_from(sorted(CURVES)))
def test_a_schedule_goes_through_its_points(points: list[float], curve: str) -> None:
    schedule = Schedule(tuple(points), curve)  # type: ignore[arg-type]
    assert schedule.value(0.0) == points[0]
    assert schedule.value(1.0) == points[-1]
    for number, point in enumerate(points[1:-1], 1):
        assert schedule.value(number / (len(points) - 1)) == pytest.approx(point, abs=1e-6)


@given(NUMBERS, NUMBERS, st.floats(0, 1), st.sampled_from(sorted(CURVES)))
def test_between_two_points_it_stays_between(a: float, b: float, d: float, curve: str) -> None:
    value = Schedule((a, b), curve).value(d)  # type: ignore[arg-type]
    assert min(a, b) - 1e-12 <= value <= max(a, b) + 1e-12


@given(NUMBERS, st.integers(2, 90), st.data())
def test_lines_is_what_the_paper_says(alpha: float, layers: int, data: st.DataObject) -> None:
    beta = data.draw(NUMBERS)
    model = Anatomy.of_names(f"h.{n}.w" for n in range(layers))
    schedule = Schedule((alpha, alpha + beta))
    for number in range(1, layers + 1):
        found = schedule.at(model.tensor(f"h.{number - 1}.w"), "scaling", None).value
        assert found == pytest.approx(alpha + beta * (number - 1) / (layers - 1), abs=1e-12)


def test_layers_without_value_are_listed() -> None:
    text = f'{HEAD}scaling: {{layers: {{"0-1": 0, "-1": 1}}}}\n'
    (source,) = parse_plan(text, "p.yaml").sources
    assert list(source.scaling.amount.problems(MODEL)) == [
        "p.yaml:4:10: `scaling` gives no value for layers 2-3; name them too, or add `default:`"
    ]


def test_texts() -> None:
    assert Outside(before=0.5, after=1).text == ", outside: {before: 0.5, after: 1}"
    assert LayerValue((LayerRange(0, 3), LayerRange(6, 6)), 0.5).text == "0-3, 6: 0.5"
    assert Schedule((0.2, 1)).text == "[0.2, 1]"


def test_what_the_number_of_a_rule_is() -> None:
    text = """scaling:
  - {kind: mlp, value: {ratio: 0.1}}
  - {kind: norm, value: {at_most: 0.2}}
  - {layers: 0, value: 0.5}
  - {value: {at_most: [0.3, 0.7], value: 2}}
"""
    (source,) = parse_plan(HEAD + text, "p.yaml").sources
    found = []
    for name in ("h.0.mlp.w", "norm.w", "h.0.attn.w", "h.2.attn.w"):
        tensor = MODEL.tensor(name)
        number, limit = source.scaling.at(tensor), source.scaling.limit_at(tensor)
        told = f"{number.text} ({number.position})"
        found.append((source.scaling.measure_at(tensor), number.value, limit and limit.value, told))
    assert found == [
        ("ratio", 0.1, None, "kind: mlp, ratio: 0.1 (p.yaml:5:32)"),
        ("factor", 1.0, 0.2, "kind: norm, value: 1 (p.yaml:6:5)"),
        ("factor", 0.5, None, "layers: 0, value: 0.5 (p.yaml:7:24)"),
        ("factor", 2.0, 0.5, "every other tensor, value: 2 (p.yaml:8:42)"),
    ]
