"""Which tensors a selector chooses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeengine.values.selectors import LayerRange, Selector, layer_of


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.experts.7.w", 3),
        ("h.0.attn.c_attn.weight", 0),
        ("12.weight", 12),
        ("blocks.10", 10),
        ("encoder.block.2.layer.1.weight", 2),
        ("lm_head.weight", None),
        ("layer3.weight", None),
        ("model.3b.weight", None),
        ("model.-1.weight", None),
        ("model.²", None),
        ("model." + "9" * 5000, None),
        ("", None),
    ],
)
def test_layer_is_the_first_integer_component(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


@pytest.mark.parametrize(
    ("written", "first", "last", "text"),
    [
        (4, 4, 4, "4"),
        ("4", 4, 4, "4"),
        ("0-3", 0, 3, "0-3"),
        (" 0 - 3 ", 0, 3, "0-3"),
        ("28-", 28, None, "28-"),
        ("7-7", 7, 7, "7"),
    ],
)
def test_layer_ranges(written: int | str, first: int, last: int | None, text: str) -> None:
    span = LayerRange.parse(written)
    assert (span.first, span.last, str(span)) == (first, last, text)


@pytest.mark.parametrize("written", ["", "-", "-3", -3, "a", "1-2-3", "0..3", "1,2", "٣", "5-2"])
def test_what_is_no_layer_range(written: int | str) -> None:
    with pytest.raises(ValueError, match=r"layers"):
        LayerRange.parse(written)


@given(st.integers(0, 200), st.integers(0, 200) | st.none(), st.integers(0, 300))
def test_both_ends_of_a_range_belong_to_it(first: int, length: int | None, layer: int) -> None:
    last = None if length is None else first + length
    span = LayerRange(first, last)
    assert (layer in span) == (first <= layer and (last is None or layer <= last))
    assert LayerRange.parse(str(span)) == span


@pytest.mark.parametrize(
    ("glob", "name", "matches"),
    [
        ("*.mlp.*", "model.layers.0.mlp.up.weight", True),
        ("*.MLP.*", "model.layers.0.mlp.up.weight", False),
        ("mlp", "model.layers.0.mlp.up.weight", False),
        ("model.*", "model.layers.0.mlp", True),
        ("*.weight", "a.weight.scale", False),
        ("layers.?.w", "layers.3.w", True),
        ("layers.?.w", "layers.13.w", False),
        ("layers.[02].w", "layers.2.w", True),
        ("layers.[!02].w", "layers.2.w", False),
        ("*", "", True),
        ("a\n*", "a\nb", True),
    ],
)
def test_globs_fit_the_whole_name(glob: str, name: str, matches: bool) -> None:
    assert Selector(match=(glob,)).matches(name) is matches


def test_all_conditions_must_hold() -> None:
    selector = Selector(
        layers=(LayerRange(0, 1), LayerRange(5, None)), match=("*.mlp.*", "*.norm.*")
    )
    assert selector.matches("h.0.mlp.w")
    assert selector.matches("h.9.norm.w")
    assert not selector.matches("h.3.mlp.w")
    assert not selector.matches("h.0.attn.w")
    assert not selector.matches("final.mlp.w"), "a tensor outside the layers is in no range"


def test_no_condition_selects_every_tensor() -> None:
    assert Selector().selects_all
    assert Selector().matches("anything")
    assert not Selector(match=("*",)).selects_all


def test_text_is_what_a_plan_would_say() -> None:
    assert Selector().text == "every tensor"
    assert Selector(layers=(LayerRange(0, 3),)).text == "layers: 0-3"
    many = Selector(layers=(LayerRange(0, 3), LayerRange(7, None)), match=("*a*",))
    assert many.text == 'layers: [0-3, 7-], match: "*a*"'


def test_a_glob_of_many_stars_is_quick() -> None:
    assert not Selector(match=("*a" * 60 + "b",)).matches("a" * 200)
