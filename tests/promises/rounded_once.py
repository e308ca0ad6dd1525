"""The documented arithmetic in numpy: each operation rounded, and the result rounded once."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.floating]

WIDE = {torch.float32, torch.float64}
_NAN = {torch.bfloat16: 0x7FC0, torch.float16: 0x7E00}
_NUMPY = {
    torch.float16: np.float16,
    torch.float32: np.float32,
    torch.float64: np.float64,
}


def merged(
    target: Tensor,
    sources: Sequence[tuple[float, Tensor, Tensor]],
    output: torch.dtype,
    *,
    float64: bool = False,
) -> Tensor:
    """``target + Σ α · (ft - base)`` for (α, base, ft): in float32 for 16-bit outputs, in float64
    for wider ones or where asked; rounded once to ``output``. A coefficient of zero is nothing."""
    compute = np.float64 if float64 or output in WIDE else np.float32
    active = [source for source in sources if source[0] != 0]
    if not active and target.dtype == output:
        return target
    with np.errstate(all="ignore"):
        value = _loaded(target, compute)
        for coefficient, base, ft in active:
            delta = _loaded(ft, compute) - _loaded(base, compute)
            value = value + compute(coefficient) * delta
        return _rounded(value, output).reshape(target.shape)


def bits(tensor: Tensor) -> bytes:
    if tensor.numel() == 0:
        return b""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _loaded(tensor: Tensor, compute: type[np.floating]) -> Array:
    flat = tensor.reshape(-1)
    if flat.dtype not in _NUMPY:  # bfloat16 and float8 are exact in float32
        flat = flat.to(torch.float32)
    return flat.numpy().astype(compute)


def _rounded(values: Array, dtype: torch.dtype) -> Tensor:
    """To nearest even; every NaN becomes the positive quiet one."""
    if dtype == torch.bfloat16:
        patterns = _bfloat16(values.astype(np.float64))
    else:
        narrow = values.astype(_NUMPY[dtype])
        narrow[np.isnan(narrow)] = np.nan
        return torch.from_numpy(narrow)
    patterns[np.isnan(values)] = _NAN[dtype]
    return torch.from_numpy(patterns.view(np.int16)).view(dtype)


def _bfloat16(values: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Of the two neighbours the nearer, at equal distance the even one."""
    nearest = values.astype(np.float32)
    toward_zero = np.where(
        np.abs(nearest) > np.abs(values), np.nextafter(nearest, np.float32(0)), nearest
    )
    low = np.ascontiguousarray(toward_zero).view(np.uint32) >> 16
    sign, magnitude = low & 0x8000, low & 0x7FFF
    below = _value(magnitude)
    above = _value(magnitude + 1)
    above[magnitude + 1 == 0x7F80] = 2.0**128  # where infinity begins
    size = np.abs(values)
    up = (size - below > above - size) | ((size - below == above - size) & (magnitude & 1 == 1))
    up &= np.isfinite(values)
    return (sign | (magnitude + up)).astype(np.uint16)


def _value(magnitudes: NDArray[np.uint32]) -> NDArray[np.float64]:
    return (magnitudes.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
