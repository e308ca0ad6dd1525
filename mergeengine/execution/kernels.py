"""The arithmetic on one tile, and the one rounding at the end.

Every operation is rounded separately to the arithmetic's dtype. ``add`` and ``sub`` are called
without ``alpha`` and ``mul`` apart from them, so that nothing is contracted to a fused
multiply-add, and numbers are tensors where the others are: the same bits come out on every device.
"""

from collections.abc import Callable

import numpy
import torch
from torch import Tensor

from mergeengine.compiler.schedule import PATCH
from mergeengine.lazy.dtypes import DType

_ROUNDED = ("bfloat16", "float16", "float32")

TORCH_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("bool", "complex64"),
    )
}


def torch_dtype(dtype: DType) -> torch.dtype:
    return TORCH_DTYPES[dtype.name]


def _where(condition: Tensor, then: Tensor, otherwise: Tensor, *, out: Tensor) -> Tensor:
    return torch.where(condition.ne(0), then, otherwise, out=out)


def _sqrt(values: Tensor, *, out: Tensor) -> Tensor:
    if values.device.type != "cpu":
        return torch.sqrt(values, out=out)
    # torch's own square root on the CPU may be one unit off; NumPy's is rounded correctly.
    with numpy.errstate(invalid="ignore"):
        numpy.sqrt(values.numpy(), out=out.numpy())
    return out


def _exp(values: Tensor, *, out: Tensor) -> Tensor:
    if values.device.type != "cpu":
        return torch.exp(values, out=out)
    # NumPy gives the same for a number wherever it stands in an array.
    with numpy.errstate(over="ignore", under="ignore", invalid="ignore"):
        numpy.exp(values.numpy(), out=out.numpy())
    return out


def _log(values: Tensor, *, out: Tensor) -> Tensor:
    if values.device.type != "cpu":
        return torch.log(values, out=out)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        numpy.log(values.numpy(), out=out.numpy())
    return out


def _maximum(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    # Of two zeros torch takes either, by where they lie: adding 0 leaves the positive one.
    return torch.maximum(a, b, out=out).add_(0.0)


def _minimum(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    return torch.minimum(a, b, out=out).add_(0.0)


def _rounded_to(dtype: torch.dtype) -> Callable[..., Tensor]:
    """As ``round_into`` and back again, a patch at a time."""

    def rounded(values: Tensor, *, out: Tensor) -> Tensor:
        size = patch_of(values)
        places = torch.split(out.view(-1), size)
        for patch, place in zip(torch.split(values.reshape(-1), size), places, strict=True):
            narrow = torch.empty_like(patch, dtype=dtype)
            _round(narrow, patch)
            _unify_nans(narrow, patch)
            place.copy_(narrow)
        return out

    return rounded


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "maximum": _maximum,
    "minimum": _minimum,
    "ge": torch.ge,
    "gt": torch.gt,
    "eq": torch.eq,
    "neg": torch.neg,
    "abs": torch.abs,
    "sign": torch.sign,
    "sqrt": _sqrt,
    "exp": _exp,
    "log": _log,
    "where": _where,
    **{f"to_{name}": _rounded_to(getattr(torch, name)) for name in _ROUNDED},
}

_EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)
_NARROW = (torch.bfloat16, torch.float16, *_EIGHT_BITS)


def round_into(out: Tensor, values: Tensor) -> bool:
    """Round ``values`` to ``out``'s dtype, to nearest even, once; NaNs become one pattern.

    Both are on the CPU. Whether ``out`` holds values that are not finite is returned.

    torch converts float64 to a 16-bit type through float32 and so rounds twice: here float64 is
    first rounded *to odd* in float32, which keeps what the second rounding needs to know
    (Boldo and Melquiond 2008).
    """
    _round(out, values)
    if not out.dtype.is_floating_point or _all_finite(out, values):
        return False
    _unify_nans(out, values)
    return out.dtype in _EIGHT_BITS or not bool(torch.isfinite(out).all())


def round_there(out: Tensor, values: Tensor, strange: Tensor) -> None:
    """The same on any device, without making the host wait for it.

    ``strange`` (bool, shape (), on the device) becomes true where ``out`` has values that are not
    finite; otherwise it is left as it is.
    """
    _round(out, values)
    if out.dtype.is_floating_point:
        _unify_nans(out, values)
        checked = values if out.dtype in _EIGHT_BITS else out
        strange.logical_or_(torch.isfinite(checked).all().logical_not())


def patch_of(values: Tensor) -> int:
    """Elements at a time for operations with several temporaries: on the CPU those stay in the
    cache, elsewhere few large kernels are better."""
    return PATCH if values.device.type == "cpu" else max(1, values.numel())


def _round(out: Tensor, values: Tensor) -> None:
    if values.dtype == torch.float64 and out.dtype in _NARROW:
        values = _round_to_odd(values)
    out.copy_(values)


def _unify_nans(out: Tensor, values: Tensor) -> None:
    nan = torch.isnan(values)
    if out.dtype in _EIGHT_BITS:
        out.view(torch.uint8).masked_fill_(nan, 0x7F)
    else:
        out.masked_fill_(nan, torch.nan)


def _all_finite(out: Tensor, values: Tensor) -> bool:
    """Cheap (one pass in cache)."""
    if out.dtype in (torch.bfloat16, *_EIGHT_BITS):  # of (nearly) float32's range, or saturating
        return bool(torch.isfinite(values.sum()))
    return all(bool(torch.isfinite(bound)) for bound in torch.aminmax(out)) if out.numel() else True


def _round_to_odd(values: Tensor) -> Tensor:
    rounded = values.new_empty(values.shape, dtype=torch.float32)
    size = patch_of(values)
    patches = torch.split(values.reshape(-1), size)
    for patch, place in zip(patches, torch.split(rounded.view(-1), size), strict=True):
        place.copy_(_patch_to_odd(patch))
    return rounded


def _patch_to_odd(values: Tensor) -> Tensor:
    nearest = values.to(torch.float32)
    error = values - nearest.to(torch.float64)
    bits = nearest.view(torch.int32)
    inexact = (error != 0) & torch.isfinite(values) & ((bits & 1) == 0)
    # Away from zero in magnitude is +1 on the bit pattern, whatever the sign.
    outward = (error > 0) == (values > 0)
    step = torch.where(outward, 1, -1).to(torch.int32)
    return torch.where(inexact, bits + step, bits).view(torch.float32)
