"""The oracle's own rounding, against exact fractions."""

import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from exact import Expected, double_roundings, round_once
from hypothesis import given, settings
from hypothesis import strategies as st

HALF_STEP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
TINIEST = {torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24, torch.float32: 2.0**-149}


def rounded(value: float, dtype: torch.dtype) -> float:
    return round_once(np.array([value]), dtype).item()


def neighbours(value: float, dtype: torch.dtype) -> list[float]:
    """What lies around ``value`` in ``dtype``, found by walking its bit patterns."""
    start = torch.tensor([value], dtype=torch.float64).to(dtype)
    integers = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    bits = abs(start).view(integers).item()
    sign = -1.0 if struct.pack(">d", value)[0] & 0x80 else 1.0
    around = torch.tensor([b for b in (bits - 1, bits, bits + 1) if b >= 0], dtype=integers)
    return [sign * found for found in around.view(dtype).tolist() if np.isfinite(found)]


@pytest.mark.parametrize("dtype", HALF_STEP, ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_ties_go_to_even_and_the_least_bit_more_breaks_them(dtype, sign) -> None:
    half = HALF_STEP[dtype]
    assert rounded(sign * (1 + half), dtype) == sign
    assert rounded(sign * (1 + 3 * half), dtype) == sign * (1 + 4 * half)
    assert rounded(sign * np.nextafter(1 + half, 2), dtype) == sign * (1 + 2 * half)
    assert rounded(sign * np.nextafter(1 + 3 * half, 1), dtype) == sign * (1 + 2 * half)


def test_torch_rounds_a_float64_twice_where_this_rounds_once() -> None:
    value = 1 + 2.0**-8 + 2.0**-40
    assert torch.tensor(value, dtype=torch.float64).to(torch.bfloat16).item() == 1.0
    assert rounded(value, torch.bfloat16) == 1 + 2.0**-7


@pytest.mark.parametrize("dtype", HALF_STEP, ids=str)
def test_the_ends_of_the_range(dtype) -> None:
    tiniest, largest = TINIEST[dtype], torch.finfo(dtype).max
    assert rounded(tiniest / 2, dtype) == 0
    assert rounded(np.nextafter(tiniest / 2, 1), dtype) == tiniest
    assert rounded(1.5 * tiniest, dtype) == 2 * tiniest
    assert rounded(largest, dtype) == largest
    top = largest / (1 - HALF_STEP[dtype])  # a power of two: the first that is too large
    middle = top * (1 - HALF_STEP[dtype] / 2)
    assert rounded(middle, dtype) == np.inf
    assert rounded(-middle, dtype) == -np.inf
    assert rounded(np.nextafter(middle, 0), dtype) == largest
    zero = round_once(np.array([0.0, -0.0, -tiniest / 4]), dtype)
    assert torch.signbit(zero).tolist() == [False, True, True]


@pytest.mark.parametrize("dtype", HALF_STEP, ids=str)
@settings(max_examples=200)
@given(value=st.floats(-60000, 60000), tail=st.floats(-(2.0**-50), 2.0**-50))
def test_nothing_representable_is_nearer(dtype, value, tail) -> None:
    # Close to something representable, or to the middle of two, as well as anywhere.
    for near in (value, rounded(value, dtype) * (1 + tail), value * (1 + HALF_STEP[dtype])):
        found = Fraction(rounded(near, dtype))
        best = min(abs(Fraction(other) - Fraction(near)) for other in neighbours(near, dtype))
        assert abs(found - Fraction(near)) == best


def oracle_of(values: list[float], dtype: torch.dtype, magnitude: float = 2.0) -> Expected:
    exact = np.array(values)
    return Expected(exact, np.full(exact.shape, magnitude), round_once(exact, dtype), (1.0,))


def test_a_neighbour_of_a_middle_passes_for_a_double_rounding() -> None:
    oracle = oracle_of([1 + 2.0**-8 + 2.0**-40, 1.0], torch.bfloat16)
    other = torch.tensor([1.0, 1.0], dtype=torch.bfloat16)
    assert double_roundings(other, oracle).tolist() == [True, False]
    assert not double_roundings(oracle.rounded, oracle).any()


@pytest.mark.parametrize("wrong", [1 + 2.0**-7, 1 - 2.0**-8, 2.0, -1.0])
def test_a_neighbour_elsewhere_does_not(wrong) -> None:
    oracle = oracle_of([1.0 + 2.0**-12], torch.bfloat16)
    with pytest.raises(AssertionError, match="further"):
        double_roundings(torch.tensor([wrong], dtype=torch.bfloat16), oracle)


def test_float32_must_be_equal() -> None:
    oracle = oracle_of([1 + 2.0**-24 + 2.0**-50], torch.float32)
    assert not double_roundings(oracle.rounded, oracle).any()
    with pytest.raises(AssertionError, match="1 of 1 values differ"):
        double_roundings(torch.ones(1), oracle)


def test_what_cancels_is_known_to_float32_only_as_nearly_zero() -> None:
    oracle = oracle_of([2.0**-63], torch.bfloat16)
    assert double_roundings(torch.zeros(1, dtype=torch.bfloat16), oracle).all()
    with pytest.raises(AssertionError, match="further"):
        double_roundings(torch.full((1,), 2.0**-20, dtype=torch.bfloat16), oracle)
