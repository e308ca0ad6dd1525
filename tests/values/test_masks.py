"""Masks and scalings resolve to a number and the line that decided it."""

from dataclasses import FrozenInstanceError

import pytest

from mergeengine.values.anatomy import lone
from mergeengine.values.decisions import Decision, number_text
from mergeengine.values.masks import MaskEntry, Masks
from mergeengine.values.parameters import Number
from mergeengine.values.positions import Position
from mergeengine.values.references import ModelReference
from mergeengine.values.scaling import Scaling
from mergeengine.values.selectors import LayerRange, Selector

FIRST = Position("plan.yaml", 8, 5)
SECOND = Position("plan.yaml", 9, 5)
FROZEN = MaskEntry(Selector(layers=(LayerRange(0, 3),)), Number(0.0), FIRST)
HALVED = MaskEntry(Selector(match=("*.mlp.*",)), Number(0.5), SECOND)
MASKS = Masks((FROZEN, HALVED))


def test_the_first_entry_that_matches_decides() -> None:
    both = MASKS.at(lone("layers.2.mlp.w"))
    assert (both.value, both.position, both.text) == (0.0, FIRST, "layers: 0-3, scale: 0")
    later = MASKS.at(lone("layers.4.mlp.w"))
    assert (later.value, later.position) == (0.5, SECOND)
    assert later.text == 'match: "*.mlp.*", scale: 0.5'


def test_no_match_leaves_the_delta_whole() -> None:
    decision = MASKS.at(lone("lm_head.weight"))
    assert (decision.value, decision.position, decision.text) == (1.0, None, "default")
    assert Masks().at(lone("x")) == Decision(1.0)


def test_unused_looks_at_each_entry_alone() -> None:
    assert MASKS.unused([lone(name) for name in ["layers.9.attn.w"]]) == [FROZEN, HALVED]
    assert MASKS.unused(lone(name) for name in ["layers.0.mlp.w"]) == [], "shadowed is not unused"
    assert MASKS.unused(lone(name) for name in ["layers.0.w", "layers.1.w"]) == [HALVED]


def test_scaling_is_one_number_for_every_tensor() -> None:
    decision = Scaling.constant(0.7, FIRST).at(lone("x"))
    assert (decision.value, decision.position, decision.text) == (0.7, FIRST, "scaling: 0.7")
    assert Scaling().at(lone("x")) == Decision(1.0)
    assert Scaling().at(lone("x")).text == "default"


@pytest.mark.parametrize(
    ("value", "text"), [(1, "1"), (0.5, "0.5"), (1e-7, "1e-07"), (-2.0, "-2"), (0.1 + 0.2, None)]
)
def test_number_text_reads_back(value: float, text: str | None) -> None:
    assert float(number_text(value)) == value
    assert text is None or number_text(value) == text


def test_positions_are_read_as_file_line_column() -> None:
    assert str(FIRST) == "plan.yaml:8:5"
    assert str(Position("--set scaling=1", 0, 0)) == "--set scaling=1"


def test_where_a_value_is_written_does_not_make_it_another_value() -> None:
    assert Scaling.constant(0.5, FIRST) == Scaling.constant(0.5, SECOND)
    assert ModelReference("a/b", repo="a/b", position=FIRST) == ModelReference("a/b", repo="a/b")


def test_a_reference_is_either_local_or_on_the_hub() -> None:
    with pytest.raises(ValueError, match="either a path, a repository, a URL or a stack"):
        ModelReference("x")
    assert not ModelReference("a/b", repo="a/b").is_local


def test_values_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        FROZEN.scale = Number(1.0)  # type: ignore[misc]
