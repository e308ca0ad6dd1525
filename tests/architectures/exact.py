"""The naive oracle: the formula in float64 on whole tensors in memory, and one exact rounding."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

FLOAT32_ERROR = 2.0**-22  # of three operations, relative to the sum of their operands' sizes

Tensors = dict[str, torch.Tensor]
Coefficient = Callable[[str], float]

# Bits of the significand (the hidden one included) and exponent of the smallest normal number.
_FORMATS = {
    torch.bfloat16: (8, -126),
    torch.float16: (11, -14),
    torch.float32: (24, -126),
}


def round_once(values: NDArray[np.float64], dtype: torch.dtype) -> torch.Tensor:
    """``values`` in ``dtype``, to nearest even, without the stop at float32 that torch makes.

    Counted in units of the last place a value has in ``dtype``, rounding is ``rint``; scaling by
    powers of two is exact, and so is the cast of what is representable already.
    """
    bits, smallest = _FORMATS[dtype]
    exponents = np.frexp(values)[1] - 1
    last_place = np.maximum(exponents, smallest) - (bits - 1)
    rounded = np.ldexp(np.rint(np.ldexp(values, -last_place)), last_place)
    return torch.from_numpy(np.asarray(rounded)).to(dtype)


@dataclass(frozen=True)
class Expected:
    """``exact`` is the float64 value, ``magnitude`` the sum of the sizes of what it is made of."""

    exact: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    rounded: torch.Tensor
    coefficients: tuple[float, ...]


def expected(
    target: Tensors,
    sources: Sequence[tuple[Tensors, Tensors, Coefficient]],
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> dict[str, Expected]:
    """``target + Σ coefficient · (ft - base)``; ``sources`` are (base, ft, coefficient by name).

    A name that base and ft lack keeps the target's value, as does what is not a float.
    """
    result = {}
    for name, tensor in target.items():
        dtype = (dtypes or {}).get(name, tensor.dtype)
        if not tensor.is_floating_point():
            value = tensor.numpy().astype(np.float64)
            result[name] = Expected(value, abs(value), tensor, ())
            continue
        value = _float64(tensor)
        magnitude = abs(value)
        coefficients = []
        for base, ft, coefficient in sources:
            if name not in base and name not in ft:
                continue
            factor = coefficient(name)
            before, after = _float64(base[name]), _float64(ft[name])
            value = value + factor * (after - before)
            magnitude = magnitude + abs(factor) * (abs(after) + abs(before))
            coefficients.append(factor)
        result[name] = Expected(value, magnitude, round_once(value, dtype), tuple(coefficients))
    return result


def double_roundings(merged: torch.Tensor, oracle: Expected) -> torch.Tensor:
    """Where ``merged`` is not the oracle's value but as near; anything else is an error.

    That happens only in 16-bit types, by one unit in the last place, where the exact value lies
    so close to the middle of two that the arithmetic's float32 cannot tell on which side. It is
    more than one unit only where target and delta cancel to less than float32 can tell from zero.
    """
    wanted = oracle.rounded
    assert merged.dtype == wanted.dtype
    assert merged.shape == wanted.shape
    differs = _bits(merged) != _bits(wanted)
    if not differs.any():
        return differs
    assert wanted.itemsize == 2, f"{int(differs.sum())} of {differs.numel()} values differ"
    at = differs.numpy()
    exact, blur = oracle.exact[at], FLOAT32_ERROR * oracle.magnitude[at]
    excess = abs(_float64(merged)[at] - exact) - abs(_float64(wanted)[at] - exact)
    assert bool((excess <= blur).all()), "further from the exact value than float32's error"
    steps = abs(_ordered(merged) - _ordered(wanted))[differs].numpy()
    last_place = abs(exact) * torch.finfo(wanted.dtype).eps / 2
    assert bool(((steps == 1) | (last_place < blur)).all()), f"off by {steps.max()} last places"
    return differs


def stored(folder: Path) -> Tensors:
    """All tensors of a folder's safetensors files."""
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                assert name not in tensors
                tensors[name] = file.get_tensor(name)
    return tensors


def layer(name: str) -> int | None:
    """The first number in a tensor's name."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


def _float64(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.to(torch.float64).numpy()


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_floating_point():
        return tensor.view({2: torch.int16, 4: torch.int32}[tensor.itemsize])
    return tensor


def _ordered(tensor: torch.Tensor) -> torch.Tensor:
    """16-bit floats counted in units of the last place, across zero."""
    bits = tensor.view(torch.int16).to(torch.int32)
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)
