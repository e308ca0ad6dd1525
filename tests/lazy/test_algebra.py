"""Normal form and simplification, told by the graphs themselves."""

from pathlib import Path

import pytest

from mergeengine.lazy import algebra
from mergeengine.lazy.dtypes import BFLOAT16, FLOAT32, FLOAT64, UINT8
from mergeengine.lazy.nodes import Node, walk
from mergeengine.lazy.stored import Stored, StoredFile
from mergeengine.lazy.tensor import LazyTensor, concat

FILE = StoredFile(Path("/nowhere/model.safetensors"), 1 << 30)


def leaf(name: str, *shape: int) -> LazyTensor:
    return LazyTensor(algebra.stored(Stored("m", name, BFLOAT16, shape, FILE, 0)))


def assert_normal(root: Node) -> None:
    """Concatenations at the top, views over what holds data, elementwise between."""

    def piece(node: Node) -> None:
        for below in walk(node):
            if below.kind == "elementwise":
                assert all(child.op != "concat" for child in below.inputs)
            if below.op == "permute":
                assert below.inputs[0].op in ("take", "slice", "stored", "low_rank", "row_sum")
            if below.op == "take":
                assert below.inputs[0].op in ("take", "slice", "stored", "low_rank", "row_sum")
            if below.op == "slice":
                assert below.inputs[0].op in ("stored", "low_rank", "row_sum")

    if root.op == "concat":
        for child in root.inputs:
            assert_normal(child)
    else:
        piece(root)


def test_equal_expressions_are_one_node() -> None:
    a, b = leaf("a", 3, 4), leaf("b", 3, 4)
    assert (a + 0.5 * b).node is (a + 0.5 * b).node
    assert (a + b).node is not (b + a).node
    assert leaf("a", 3, 4).node is a.node


def test_zeros_of_both_signs_are_different_constants() -> None:
    assert algebra.constant(0.0) is not algebra.constant(-0.0)
    assert algebra.constant(0.5) is algebra.constant(0.5)


def test_a_passage_times_zero_is_not_read() -> None:
    target, ft, base = leaf("t", 5), leaf("f", 5), leaf("b", 5)
    assert (target + 0.0 * (ft - base)).node is target.node
    assert (target - 0.0 * ft).node is target.node
    assert (0.0 * ft + target).node is target.node
    assert (target + -0.0 * ft).node is target.node
    assert (target + (ft - ft)).node is target.node


def test_ones_vanish() -> None:
    a = leaf("a", 5)
    assert (1.0 * a).node is a.node
    assert (a / 1).node is a.node


@pytest.mark.parametrize(
    ("left", "right"), [((3, 4), (4, 3)), ((3, 4), (4,)), ((2, 3), (2, 2)), ((2,), (1, 2))]
)
def test_shapes_must_fit(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        leaf("a", *left) + leaf("b", *right)


def test_broadcasting_repeats_ones_and_numbers() -> None:
    a = leaf("a", 3, 4)
    assert (a * a.row_sum()).shape == (3, 4)
    assert (a / a.norm()).shape == (3, 4)


def test_layout_is_pushed_to_the_leaves() -> None:
    a, b, c = leaf("a", 6, 4), leaf("b", 6, 4), leaf("c", 4, 6)
    joined = concat([a - b, c.permute(1, 0)]) * 0.5
    assert joined.shape == (12, 4)
    assert joined.node.op == "concat"
    for part in (
        joined[2:9, 1:3],
        joined.permute(1, 0)[1:2],
        (a - b).take([5, 0, 0, 3]),
        (a - b).take([5, -1, 2, 3]) + leaf("d", 4, 4),
        joined.take([0, 11, -1, 5, 6]),
        concat([a, b], 1)[:, 2:7].permute(1, 0).take([4, 1]),
    ):
        assert_normal(part.node)


def test_slices_compose() -> None:
    a = leaf("a", 10, 8)
    assert a[2:9][1:4].node is a[3:6].node
    assert a[:, 1:7].permute(1, 0)[2:4].node is a[:, 3:5].permute(1, 0).node
    assert a[0:10].node is a.node


def test_permutes_compose_to_nothing() -> None:
    a = leaf("a", 2, 3, 4)
    assert a.permute(2, 0, 1).permute(1, 2, 0).node is a.node


def test_constants_beside_each_other_join() -> None:
    zero = leaf("a", 2, 3) * 0.0
    assert concat([zero, zero]).node is algebra.constant(0.0, (4, 3))


@pytest.mark.parametrize("key", [slice(0, 5, 2), (slice(None), slice(None))])
def test_impossible_parts_are_refused(key: slice) -> None:
    with pytest.raises(ValueError, match="no part"):
        leaf("a", 5)[key]


def test_take_checks_its_indices() -> None:
    with pytest.raises(ValueError, match="outside"):
        leaf("a", 5).take([5])


def test_low_rank_of_full_rank_is_the_matrix() -> None:
    a = leaf("a", 3, 4)
    assert a.low_rank(3).node is a.node
    with pytest.raises(ValueError, match="matrix"):
        leaf("b", 3).low_rank(1)


def test_kth_magnitude_counts_from_one() -> None:
    with pytest.raises(ValueError, match="0-th"):
        leaf("a", 3).kth_magnitude(0)
    with pytest.raises(ValueError, match="4-th"):
        leaf("a", 3).kth_magnitude(4)


def test_a_deep_chain_does_not_exhaust_the_stack() -> None:
    value = leaf("a", 4)
    for number in range(5000):
        value = value + float(number + 1)
    assert sum(1 for _ in walk(value.node)) == 10001


def test_dtypes_know_their_codes() -> None:
    assert (BFLOAT16.code, FLOAT32.itemsize, str(FLOAT32)) == ("BF16", 4, "float32")


def test_other_nodes_in_the_place_of_stored_tensors() -> None:
    t, f, b, x, y = (leaf(name, 6, 4) for name in "tfbxy")
    made = (x - y).round_to(BFLOAT16)

    def with_base(base: LazyTensor) -> LazyTensor:
        masked = abs(f - base) >= (f - base).kth_magnitude(3)
        shifted = base.take([1, -1, *range(2, 6)]).permute(1, 0)[:2]
        sums = base.row_sum() * (base.sum() + base.norm())
        return concat([t + 0.5 * masked.where(f - base, 0.0) * sums, shifted.permute(1, 0)], 1)

    (rebuilt,) = algebra.rebuilt(
        [with_base(b).node], lambda held: made.node if held.name == "b" else None
    )
    assert rebuilt is with_base(made).node
    assert_normal(rebuilt)
    assert algebra.rebuilt([t.node], lambda held: None) == [t.node]


def test_rounding_is_for_what_outputs_are_written_in() -> None:
    a = leaf("a", 3)
    assert a.round_to(BFLOAT16).node.op == "to_bfloat16"
    assert a.round_to(FLOAT64).node is a.node
    with pytest.raises(ValueError, match="not rounded to uint8"):
        a.round_to(UINT8)
