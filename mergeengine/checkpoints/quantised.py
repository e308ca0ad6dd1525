"""Checkpoints in 8-bit floats with scales beside them: what their weights mean.

    weight = stored · scale

with one scale for a tensor, for each row (channel), or for each block of rows and columns; the
product is made in the dtype of the arithmetic, block by block, where it is used. Read are the ways
in which the field writes it:

* ``quant_method: fp8`` (DeepSeek-V3, transformers): ``X.weight_scale_inv``, which in spite of its
  name is multiplied, for blocks of ``weight_block_size``; or ``X.weight_scale``;
* ``compressed-tensors`` in a float format of 8 bits, ``fbgemm_fp8``, and ``modelopt`` FP8:
  ``X.weight_scale``.

Scales of activations belong to a way of running a model and are left out. All other formats are
refused, each with what to do instead.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from types import MappingProxyType
from typing import Any

from mergeengine.checkpoints.documents import listing, shown
from mergeengine.errors import CheckpointError
from mergeengine.lazy import algebra
from mergeengine.lazy.dtypes import BFLOAT16, OUTPUT_DTYPES, DType
from mergeengine.lazy.nodes import Node, Shape
from mergeengine.lazy.stored import Stored
from mergeengine.lazy.weight import Derived, Quantised, Weight

Config = Mapping[str, Any]

_UNQUANTISED = "use the unquantised checkpoint that it was made from"
_DEQUANTISED = (
    f"{_UNQUANTISED}, or dequantise it first (transformers: from_pretrained, dequantize, "
    "save_pretrained)"
)
# What to do for formats whose stored numbers are codes of fewer bits, packed or looked up.
_REFUSED = {
    "gptq": _DEQUANTISED,
    "awq": f"{_UNQUANTISED}: AWQ has also scaled its channels",
    "bitsandbytes": (
        f"{_UNQUANTISED} (for QLoRA that model is the adapter's base as well), or dequantise it "
        "first (transformers: from_pretrained, dequantize, save_pretrained)"
    ),
    "gguf": "use the safetensors checkpoint that it was made from",
    "mxfp4": (
        "load it with transformers and Mxfp4Config(dequantize=True), and save it with "
        "save_pretrained"
    ),
    "hqq": _UNQUANTISED,
    "aqlm": f"{_UNQUANTISED}: codebooks cannot be added",
    "vptq": f"{_UNQUANTISED}: codebooks cannot be added",
    "quip": f"{_UNQUANTISED}: codebooks cannot be added",
    "higgs": f"{_UNQUANTISED}: codebooks cannot be added",
    "spqr": _UNQUANTISED,
    "eetq": _UNQUANTISED,
    "quanto": _UNQUANTISED,
    "bitnet": f"{_UNQUANTISED} (often named -bf16)",
    "torchao": f"{_UNQUANTISED}, or save what torchao dequantises",
    "quark": _UNQUANTISED,
    "auto-round": _DEQUANTISED,
    "modelopt": f"{_UNQUANTISED}: of ModelOpt's formats FP8 alone is read",
    "compressed-tensors": (
        f"{_UNQUANTISED}: of its formats floats of 8 bits alone are read (float-quantized)"
    ),
}
_SCALES = ("_scale_inv", "_scale")  # after the name of the weight
_OF_ACTIVATIONS = (
    ".input_scale", ".input_scale_ub", ".activation_scale", ".output_scale", ".kv_scale",
    ".k_scale", ".v_scale", ".q_scale", ".prob_scale",
)  # fmt: skip


def quantisation_config(config: Config | None) -> Mapping[str, Any] | None:
    """What a config, or one inside it, says of how its weights are quantised."""
    for part in _nested(config or {}):
        found = part.get("quantization_config") or part.get("compression_config")
        if found:
            return found if isinstance(found, dict) else {"quant_method": found}
    return None


def quantised(config: Config | None) -> str | None:
    """Why a model's weights cannot be merged as they are, and what to do; None if they can."""
    found = quantisation_config(config)
    if found is None or _is_fp8(found):
        return None
    method = str(found.get("quant_method", ""))
    # gptq_marlin, compressed_tensors, ...
    known = method.replace("_", "-").casefold()
    way_out = next((way for name, way in _REFUSED.items() if known.startswith(name)), _DEQUANTISED)
    kind = f"quantised ({shown(method)})" if method else "quantised"
    return (
        f"its weights are {kind}: their stored numbers are codes, which cannot be added; {way_out}"
    )


def dequantised(
    label: str, config: Config | None, tensors: Mapping[str, Weight]
) -> tuple[Mapping[str, Weight], tuple[str, ...]]:
    """The weights that a model's tensors mean, and notes.

    Without a config that speaks of 8-bit floats these are the tensors themselves. CheckpointError
    where a scale is missing, is beside nothing, or has not the shape that the config says.
    """
    found = quantisation_config(config)
    if found is None or not _is_fp8(found):
        return tensors, ()
    block = _block_of(found)
    dtype = _dtype_of(config or {})
    weights: dict[str, Weight] = {}
    used: set[str] = set()
    problems: list[str] = []
    for name, tensor in tensors.items():
        if not tensor.dtype.is_float or tensor.dtype.itemsize > 1:
            continue
        scale = next((tensors[name + end] for end in _SCALES if name + end in tensors), None)
        if scale is None:
            problems.append(f"{name}: {tensor.dtype} without {name}_scale or {name}_scale_inv")
            continue
        if not isinstance(tensor, Stored) or not isinstance(scale, Stored):
            problems.append(f"{name}: it or its scale does not lie in one piece in its file")
            continue
        factors = _factors(tensor.shape, scale.shape, block)
        if factors is None or not scale.dtype.is_float:
            sizes = f"blocks of {list(block)}" if block else "rows or the whole tensor"
            problems.append(
                f"{name}: the scale of {list(tensor.shape)} in {sizes} is {scale.dtype} "
                f"{list(scale.shape)}"
            )
            continue
        used.add(scale.name)
        weights[name] = Derived(
            tensor.source,
            name,
            dtype,
            _product(tensor, scale, factors),
            quantised=Quantised(tensor, scale, factors),
        )
    left = [name for name in tensors if name not in used and name.endswith(_OF_ACTIVATIONS)]
    gone = used.union(left)
    for name, tensor in tensors.items():
        if name in gone or name in weights:
            continue
        if name.endswith((*_SCALES, "_zero_point")):
            problems.append(f"{name}: there is no weight in 8-bit floats beside it")
        weights[name] = tensor
    if problems:
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise CheckpointError(
            f"{label}: the weights are not what quantization_config says:\n  "
            + "\n  ".join(problems[:20])
            + f"{more}\n  {_UNQUANTISED}, or copy it again"
        )
    note = f"{label}: {len(left)} scales of activations are left out: {listing(left, 3)}"
    ordered = {name: weights[name] for name in tensors if name in weights}
    return MappingProxyType(ordered), (note,) if left else ()


def _is_fp8(found: Mapping[str, Any]) -> bool:
    method = str(found.get("quant_method", "")).replace("_", "-").casefold()
    if method in ("fp8", "fbgemm-fp8"):
        return True
    if method == "modelopt":
        return found.get("quant_algo") == "FP8"
    if method != "compressed-tensors":
        return False
    groups = found.get("config_groups")
    weights = [
        group.get("weights")
        for group in (groups.values() if isinstance(groups, dict) else ())
        if isinstance(group, dict)
    ]
    return bool(weights) and all(
        isinstance(each, dict)
        and each.get("type") == "float"
        and each.get("num_bits") == 8
        and each.get("symmetric", True)
        for each in weights
    )


def _block_of(found: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a block, where the config says them."""
    groups = found.get("config_groups")
    inside = [
        group["weights"].get("block_structure")
        for group in (groups.values() if isinstance(groups, dict) else ())
        if isinstance(group, dict) and isinstance(group.get("weights"), dict)
    ]
    for size in (found.get("weight_block_size"), *inside):
        if isinstance(size, list) and [type(n) for n in size] == [int, int] and min(size) >= 1:
            return size[0], size[1]
    return None


def _dtype_of(config: Config) -> DType:
    """The dtype that the config says the model computes in: bfloat16 where it says none."""
    for part in _nested(config):
        for key in ("dtype", "torch_dtype"):
            told = str(part.get(key, "")).removeprefix("torch.")
            if told in OUTPUT_DTYPES:
                return OUTPUT_DTYPES[told]
    return BFLOAT16


def _factors(shape: Shape, scale: Shape, block: tuple[int, int] | None) -> tuple[int, ...] | None:
    """So many elements in each dimension have one scale; None where the shapes do not fit."""
    if prod(scale) == 1 or not shape:
        return shape if prod(scale) == 1 else None
    if scale in ((shape[0],), (shape[0], *(1 for _ in shape[1:]))) and (
        block is None or len(shape) < 2
    ):
        return (1, *shape[1:])
    if len(shape) > 2 and scale == (*shape[:-2], 1, 1):
        return (*(1 for _ in shape[:-2]), *shape[-2:])
    if len(shape) < 2 or block is None:
        return None
    wanted = (*shape[:-2], *(-(-n // b) for n, b in zip(shape[-2:], block, strict=True)))
    return (*(1 for _ in shape[:-2]), *block) if scale == wanted else None


def _product(tensor: Stored, scale: Stored, factors: Sequence[int]) -> Node:
    counts = tuple(-(-n // max(1, f)) for n, f in zip(tensor.shape, factors, strict=True))
    if 0 in tensor.shape:
        return algebra.stored(tensor)
    numbers = algebra.stored(replace(scale, shape=counts))
    spread = algebra.repeat(numbers, [max(1, factor) for factor in factors], tensor.shape)
    return algebra.elementwise("mul", algebra.stored(tensor), spread)


def _nested(config: Config, levels: int = 4) -> Iterator[Config]:
    yield config
    for key, value in config.items() if levels else ():
        if key.endswith("_config") and key != "quantization_config" and isinstance(value, dict):
            yield from _nested(value, levels - 1)
