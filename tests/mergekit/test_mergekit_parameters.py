"""What every tensor gets, against mergekit's rules written down once more, plainly."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit_reference import evaluated, first
from tiny_llamas import layer_of, named, shapes

from mergeengine.plan.plan import Plan
from mergeengine.values.anatomy import Anatomy
from mergeengine.workflow.reading import parse_plan

FILTERS = ("self_attn", "mlp", "lm_head", "norm", "o_proj", "embed", "nowhere", "model.layers")
numbers = st.integers(0, 8).map(lambda each: each / 4)
gradients = numbers | st.lists(numbers, min_size=1, max_size=4)


def with_filters(closed: bool) -> Any:
    conditions = st.lists(
        st.fixed_dictionaries({"filter": st.sampled_from(FILTERS), "value": gradients}),
        min_size=1,
        max_size=3,
    )
    closing = st.sampled_from([{}, {"filter": "*"}, {"filter": None}])
    last = st.builds(lambda end, value: [{**end, "value": value}], closing, gradients)
    return st.builds(lambda a, b: [*a, *b], conditions, last if closed else st.just([]))


anything = gradients | with_filters(True) | with_filters(False)
closed = gradients | with_filters(True)
maybe = st.none() | anything


def expected_of(places: list[Any], name: str, t: float) -> float:
    found = first(places, name, t)
    assert found is not None
    return found


def parameters(**values: Any) -> dict[str, Any]:
    there = {key: value for key, value in values.items() if value is not None}
    return {"parameters": there} if there else {}


def planned(config: dict[str, Any]) -> Plan:
    return parse_plan(yaml.safe_dump(config, sort_keys=False), "config.yml")


def anatomy(layers: int) -> Anatomy:
    return Anatomy(shapes(layers))


@settings(max_examples=30)
@given(own=maybe, other=maybe, shared=closed, layers=st.integers(1, 5))
def test_whole_models(own: Any, other: Any, shared: Any, layers: int) -> None:
    config = {
        "merge_method": "task_arithmetic",
        "base_model": "org/base",
        "models": [
            {"model": "org/one", **parameters(weight=own)},
            {"model": "org/two", **parameters(weight=other)},
        ],
        **parameters(weight=shared),
    }
    plan = planned(config)
    for facts in anatomy(layers).tensors():
        layer = layer_of(facts.name)
        t = 0.0 if layer is None else layer / (layers - 1) if layers > 1 else 1.0
        for source, own_setting in zip(plan.sources, (own, other), strict=True):
            expected = expected_of([own_setting, shared], facts.name, t)
            assert source.scaling.amount.at(facts).value == expected, (facts.name, config)


@st.composite
def sliced(draw: Any) -> tuple[dict[str, Any], list[tuple[int, list[Any]]]]:
    """A configuration of slices, and each one's number of layers and settings, inner ones first."""
    everywhere = draw(closed)
    slices, expected, start = [], [], 0
    for _ in range(draw(st.integers(1, 4))):
        count = draw(st.integers(1, 3))
        own, of_slice = draw(maybe), draw(maybe)
        source = {
            "model": "org/one",
            "layer_range": [start, start + count],
            **parameters(scale=own),
        }
        slices.append({"sources": [source], **parameters(scale=of_slice)})
        expected.append((count, [own, of_slice, everywhere]))
        start += draw(st.integers(0, count))
    config = {
        "merge_method": "passthrough",
        "slices": slices,
        **parameters(scale=everywhere),
    }
    return config, expected


@settings(max_examples=50)
@given(sliced())
def test_slices(case: tuple[dict[str, Any], list[tuple[int, list[Any]]]]) -> None:
    config, slices = case
    plan = planned(config)
    places = [(index, count, own) for count, own in slices for index in range(count)]
    for facts in anatomy(len(places)).tensors():
        layer = layer_of(facts.name)
        if layer is None:
            t, own = 0.0, slices[0 if facts.stands_before else -1][1]
        else:
            index, count, own = places[layer]
            t = index / (count - 1) if count > 1 else 1.0
        expected = expected_of(own, facts.name, t)
        assert plan.sources[0].scaling.amount.at(facts).value == expected, (facts.name, config)


@settings(max_examples=20)
@given(shared=closed, of_slices=st.lists(maybe, min_size=1, max_size=3))
def test_parameters_of_all(shared: Any, of_slices: list[Any]) -> None:
    slices = [
        {
            "sources": [
                {"model": "org/one", "layer_range": [2 * index, 2 * index + 2]},
                {"model": "org/two", "layer_range": [2 * index, 2 * index + 2]},
            ],
            **parameters(t=each),
        }
        for index, each in enumerate(of_slices)
    ]
    config = {"merge_method": "slerp", "base_model": "org/two", "slices": slices}
    plan = planned({**config, **parameters(t=shared)})
    assert [each.source_ft.stack[0].model.text for each in plan.sources] == ["org/two", "org/one"]
    for facts in anatomy(2 * len(slices)).tensors():
        layer = layer_of(facts.name)
        if layer is None:
            t, own = 0.0, of_slices[0 if facts.stands_before else -1]
        else:
            t, own = float(layer % 2), of_slices[layer // 2]
        given = plan.parameters.get("t")
        found = 0.5 if given is None else given.at(facts).value
        assert found == expected_of([own, shared], facts.name, t), (facts.name, plan.document)


def test_the_helpers() -> None:
    assert named("model.layers.2.mlp.up_proj.weight", 3) == "model.layers.3.mlp.up_proj.weight"
    assert evaluated([0, 1], "x", 0.25) == 0.25
    assert evaluated([{"filter": "a", "value": 1}], "b", 0) is None
