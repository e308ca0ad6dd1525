"""The actions of masks: what each says of itself, and the order in which they apply."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeengine.values.actions import (
    ORDER,
    Above,
    Action,
    Drop,
    FileMask,
    Keep,
    Orthogonal,
    Ranked,
    RowRange,
    Rows,
    Sign,
    Token,
    in_order,
)
from mergeengine.values.references import ModelReference

REFERENCE = ModelReference("m.safetensors", repo="m")


@pytest.mark.parametrize(
    ("action", "text", "shown"),
    [
        (Orthogonal(), "orthogonal_to: target_shift", "orthogonal(δ)"),
        (Orthogonal(0.5), "orthogonal_to: target_shift, beta: 0.5", "orthogonal(0.5, δ)"),
        (Rows("rows", (RowRange(0, 3),)), "rows: 0-3", "rows(0-3, δ)"),
        (
            Rows("tokens", (RowRange(7, 7), RowRange(9, None), Token("a", 1), Token('"'))),
            'tokens: [7, 9-, "a" (1), "\\""]',
            'rows([7, 9-, "a" (1), "\\""], δ)',
        ),
        (
            Rows("rows", tuple(RowRange(n, n) for n in range(5))),
            "rows: [0, 1, 2, 3, ...]",
            "rows([0, 1, 2, 3, ...], δ)",
        ),
        (FileMask(REFERENCE), "file: m.safetensors", "file(m.safetensors, δ)"),
        (FileMask(REFERENCE, 1.0), "file: m.safetensors, default: 1", "file(m.safetensors, δ)"),
        (Above(1e-4), "above: 0.0001", "above(0.0001, δ)"),
        (Ranked("top", 0.2), "top: 0.2", "top(0.2, δ)"),
        (Ranked("bottom", 1.0), "bottom: 1", "bottom(1, δ)"),
        (Sign(), "sign: target_shift", "sign(target_shift, δ)"),
        (Sign("math"), "sign: agree_with math", "sign(math, δ)"),
        (Drop(0.9), "drop: 0.9", "drop(0.9, δ)"),
    ],
)
def test_texts(action: Action, text: str, shown: str) -> None:
    assert action.text == text
    assert action.shown("δ") == shown


def test_keep_says_of_whom() -> None:
    assert Keep("target").text == "keep: target"
    assert Keep("source_ft", "math").text == "keep: source_ft, of: math"


def test_the_order_does_not_depend_on_the_plans() -> None:
    one, other = Above(0.1), Above(0.2)
    source = [Drop(0.5), Sign(), one, Rows("rows", (RowRange(0, 0),))]
    plan = [Ranked("top", 0.5), other, Orthogonal()]
    found = in_order(source, plan)
    kinds = [type(each.action) for each in found]
    assert kinds == sorted(kinds, key=ORDER.index)
    assert {type(each.action) for each in found} == set(kinds)
    both = [(each.action, each.level) for each in found if isinstance(each.action, Above)]
    assert both == [(one, "source"), (other, "plan")], "the source's own comes first"
    assert in_order(source[::-1], plan[::-1]) == found


@pytest.mark.parametrize(
    ("written", "text"), [(4, "4"), ("4", "4"), (" 0 - 3 ", "0-3"), ("28-", "28-"), ("0-0", "0")]
)
def test_rows_are_read(written: int | str, text: str) -> None:
    assert str(RowRange.parse(written)) == text


@pytest.mark.parametrize("written", ["", "a", "-1", -1, "3-1", "1-2-3", "1.5", "9" * 13])
def test_what_are_no_rows(written: int | str) -> None:
    with pytest.raises(ValueError, match=r"expected rows|run downwards"):
        RowRange.parse(written)


PAIRS = st.tuples(st.integers(0, 12), st.integers(0, 12) | st.none())


@given(pairs=st.lists(PAIRS, min_size=1, max_size=5), count=st.integers(0, 14))
def test_rows_within_a_tensor(pairs: list[tuple[int, int | None]], count: int) -> None:
    ranges = [RowRange(a, b if b is None else max(a, b)) for a, b in pairs]
    found = Rows("rows", tuple(ranges)).within(count)
    wanted: set[int] = set()
    for each in ranges:
        wanted |= set(range(each.first, count if each.last is None else each.last + 1))
    fits = all(each.first < count for each in ranges) and max(wanted, default=-1) < count
    if not fits:
        assert found is None
        return
    assert found is not None
    assert {row for first, last in found for row in range(first, last + 1)} == wanted
    assert all(one[1] + 1 < other[0] for one, other in pairwise(found))


def test_a_token_has_a_row_once_it_is_looked_up() -> None:
    rows = Rows("tokens", (Token("a"), RowRange(4, None)))
    assert list(rows.texts()) == ["a"]
    assert rows.looked_up({"a": 2}).within(6) == ((2, 2), (4, 5))
    assert rows.looked_up({"a": 6}).within(6) is None
