"""Which tensors a selector chooses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeengine.values.anatomy import Anatomy, layer_of, lone
from mergeengine.values.selectors import LayerRange, Selector


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
        (-1, -1, -1, "-1"),
        ("-3", -3, -3, "-3"),
        ("-4--1", -4, -1, "-4--1"),
        ("-4 - -1", -4, -1, "-4--1"),
        ("-4-", -4, None, "-4-"),
        ("2--3", 2, -3, "2--3"),
        ("even", 0, None, "even"),
        ("odd", 1, None, "odd"),
    ],
)
def test_layer_ranges(written: int | str, first: int, last: int | None, text: str) -> None:
    span = LayerRange.parse(written)
    assert (span.first, span.last, str(span)) == (first, last, text)


@pytest.mark.parametrize(
    "written", ["", "-", "--3", "a", "1-2-3", "0..3", "1,2", "٣", "5-2", "-1--4", "Even"]
)
def test_what_is_no_layer_range(written: int | str) -> None:
    with pytest.raises(ValueError, match=r"layers"):
        LayerRange.parse(written)


@given(st.integers(0, 200), st.integers(0, 200) | st.none(), st.integers(0, 300))
def test_both_ends_of_a_range_belong_to_it(first: int, length: int | None, layer: int) -> None:
    last = None if length is None else first + length
    span = LayerRange(first, last)
    assert span.holds(layer, 600) == (first <= layer and (last is None or layer <= last))
    assert LayerRange.parse(str(span)) == span


@given(st.data(), st.integers(1, 60))
def test_negative_layers_count_from_the_end(data: st.DataObject, layers: int) -> None:
    """A range means what Python's slices mean, but for its last layer, which belongs to it."""
    ends = st.integers(-layers, layers - 1)
    first, last = data.draw(ends), data.draw(ends)
    every = range(layers)
    held = [layer for layer in every if LayerRange(first, last).holds(layer, layers)]
    assert held == list(every[first : last + 1 if last != -1 else None])
    open_ended = LayerRange(first, None)
    assert [layer for layer in every if open_ended.holds(layer, layers)] == list(every[first:])


@pytest.mark.parametrize("layers", [1, 2, 5, 8])
def test_even_and_odd(layers: int) -> None:
    every = range(layers)
    even, odd = LayerRange.parse("even"), LayerRange.parse("odd")
    assert [layer for layer in every if even.holds(layer, layers)] == list(every[::2])
    assert [layer for layer in every if odd.holds(layer, layers)] == list(every[1::2])


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
    assert Selector(match=(glob,)).matches(lone(name)) is matches


def test_all_conditions_must_hold() -> None:
    selector = Selector(
        layers=(LayerRange(0, 1), LayerRange(5, None)), match=("*.mlp.*", "*.norm.*")
    )
    assert selector.matches(lone("h.0.mlp.w"))
    assert selector.matches(lone("h.9.norm.w"))
    assert not selector.matches(lone("h.3.mlp.w"))
    assert not selector.matches(lone("h.0.attn.w"))
    assert not selector.matches(lone("final.mlp.w")), "a tensor outside the layers is in no range"


def test_no_condition_selects_every_tensor() -> None:
    assert Selector().selects_all
    assert Selector().matches(lone("anything"))
    assert not Selector(match=("*",)).selects_all


def test_text_is_what_a_plan_would_say() -> None:
    assert Selector().text == "every tensor"
    assert Selector(layers=(LayerRange(0, 3),)).text == "layers: 0-3"
    many = Selector(layers=(LayerRange(0, 3), LayerRange(7, None)), match=("*a*",))
    assert many.text == 'layers: [0-3, 7-], match: "*a*"'


def test_a_glob_of_many_stars_is_quick() -> None:
    assert not Selector(match=("*a" * 60 + "b",)).matches(lone("a" * 200))


def test_a_regex_is_searched() -> None:
    selector = Selector(regex=(r"\.(q|k)_proj\.", "^lm_head"))
    assert selector.matches(lone("h.0.attn.q_proj.weight"))
    assert selector.matches(lone("lm_head.weight"))
    assert not selector.matches(lone("h.0.attn.v_proj.weight"))


def test_selectors_combine() -> None:
    model = Anatomy.of_names(
        f"h.{layer}.{part}" for layer in range(4) for part in ("mlp.w", "attn.w", "mlp.bias")
    )

    def chosen(selector: Selector) -> list[str]:
        return [tensor.name for tensor in model.tensors() if selector.matches(tensor)]

    mlp, last = Selector(kind=("mlp",)), Selector(layers=(LayerRange(-1, -1),))
    bias = Selector(kind=("bias",))
    assert chosen(Selector(every=(mlp, last))) == ["h.3.mlp.w", "h.3.mlp.bias"]
    assert chosen(Selector(every=(mlp, last), none=(bias,))) == ["h.3.mlp.w"]
    assert chosen(Selector(some=(bias, last), layers=(LayerRange(2, None),))) == [
        "h.2.mlp.bias", "h.3.mlp.w", "h.3.attn.w", "h.3.mlp.bias",
    ]  # fmt: skip
    assert chosen(Selector(none=(mlp, last))) == ["h.0.attn.w", "h.1.attn.w", "h.2.attn.w"]
    upper = Selector(selection=(("upper", Selector(some=(last,))), ("biases", bias)))
    assert len(chosen(upper)) == 6
    assert upper.text == "selection: [upper, biases]"
    assert Selector(kind=("mlp",), none=(bias,)).text == "kind: mlp, not: {kind: bias}"


def test_each_stack_counts_its_own_layers() -> None:
    model = Anatomy.of_names(
        [f"encoder.{n}.w" for n in range(2)] + [f"decoder.{n}.w" for n in range(4)] + ["head"]
    )
    last = Selector(layers=(LayerRange(-1, -1),))
    assert [t.name for t in model.tensors() if last.matches(t)] == ["encoder.1.w", "decoder.3.w"]
    assert [t.depth for t in model.tensors()] == [0, 1, 0, 1 / 3, 2 / 3, 1, 1]
    assert not last.matches(model.tensor("head"))
