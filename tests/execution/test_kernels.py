"""The one rounding at the end: once, to nearest even, NaNs in one pattern."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mergeengine.execution.kernels import OPERATIONS, round_into

NARROW = {torch.bfloat16: (8, -126, 127), torch.float16: (11, -14, 15)}


def correctly_rounded(number: float, precision: int, least: int, most: int) -> float:
    """To nearest even in exact arithmetic; overflow to infinity as IEEE 754 has it."""
    exact = Fraction(number)
    if exact == 0:
        return number
    exponent = least
    magnitude = abs(exact)
    while magnitude >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** (exponent - precision + 1)
    rounded = round(magnitude / unit) * unit  # Fraction rounds halves to even
    largest = (2 - Fraction(2) ** (1 - precision)) * Fraction(2) ** most
    value = float("inf") if rounded > largest else float(rounded)
    return value if exact > 0 else -value


@pytest.mark.parametrize("dtype", NARROW)
@given(st.floats(allow_nan=False, allow_infinity=False))
@example(1.0 + 2**-8 + 2**-30)  # just above a tie: rounding twice falls onto the tie
@example(1.0 + 2**-8 - 2**-30)
@example(1.0 + 2**-11 + 2**-40)
@example(1.0 + 3 * 2**-11 - 2**-40)
@example(2**-134 + 2**-180)
@example(-(2**-25) - 2**-70)
@example(3.4e38)
@example(65519.999999)
@example(-65520.0)
@example(1e-320)
def test_float64_is_rounded_once(dtype: torch.dtype, number: float) -> None:
    out = torch.empty(1, dtype=dtype)
    round_into(out, torch.tensor([number], dtype=torch.float64))
    assert out.to(torch.float64).item() == correctly_rounded(number, *NARROW[dtype])


@pytest.mark.parametrize("compute", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_on_the_way_is_writing_and_reading_again(
    dtype: torch.dtype, compute: torch.dtype
) -> None:
    size = {torch.float32: 4, torch.float64: 8}[compute]
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (size * 200_000,), dtype=torch.uint8, generator=generator)
    values = torch.cat([raw.view(compute), torch.randn(1000, generator=generator).to(compute)])
    written = torch.empty(values.shape, dtype=dtype)
    round_into(written, values)
    place = values.clone()
    out = OPERATIONS[f"to_{str(dtype).removeprefix('torch.')}"](place, out=place)
    assert torch.equal(out.view(torch.uint8), written.to(compute).view(torch.uint8))


def test_torch_itself_rounds_twice_here() -> None:
    """The reason for rounding to odd: if this ever fails, the detour can go."""
    tricky = torch.tensor([1.0 + 2**-8 + 2**-30], dtype=torch.float64)
    assert tricky.to(torch.bfloat16).item() == 1.0
    out = torch.empty(1, dtype=torch.bfloat16)
    round_into(out, tricky)
    assert out.item() == 1.0 + 2**-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("compute", [torch.float32, torch.float64])
def test_nans_become_one_pattern(dtype: torch.dtype, compute: torch.dtype) -> None:
    values = torch.tensor([1.0, float("nan"), -float("nan"), float("inf"), -2.0], dtype=compute)
    if compute == torch.float32:
        values.view(torch.int32)[2] = -0x3FFFF0  # another NaN pattern
    out = torch.empty(5, dtype=dtype)
    round_into(out, values)
    assert out.isnan().tolist() == [False, True, True, False, False]
    canonical = torch.tensor([torch.nan], dtype=dtype).view(torch.uint8).tolist()
    assert out[1:2].view(torch.uint8).tolist() == canonical
    assert out[2:3].view(torch.uint8).tolist() == canonical
    assert (out[0].item(), out[3].item(), out[4].item()) == (1.0, float("inf"), -2.0)


def test_denormals_are_kept() -> None:
    values = torch.tensor([1e-40, -1e-45, 2**-133], dtype=torch.float32)
    out = torch.empty(3, dtype=torch.bfloat16)
    round_into(out, values)
    assert out[2].item() == 2**-133
    assert out[0].item() != 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (100_003,)])
def test_square_roots_are_rounded_correctly(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Against exact integers: r is the nearest root where x lies between (r ± half a unit)²."""
    values = torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    roots = OPERATIONS["sqrt"](values, out=torch.empty(shape, dtype=dtype))
    for x, r in list(zip(values.reshape(-1).tolist(), roots.reshape(-1).tolist(), strict=True))[
        :5000
    ]:
        unit = math.ulp(r) if dtype == torch.float64 else math.ulp(r) * 2**29
        low, high = Fraction(r) - Fraction(unit) / 2, Fraction(r) + Fraction(unit) / 2
        assert low**2 <= Fraction(x) <= high**2
