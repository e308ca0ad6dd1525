"""Writing weights in 8 bits again where the target's are (``output.quantization: keep``).

Of a weight v, as the arithmetic in float32 has it, and each part of it that has one scale (a block,
a row, or all of it):

    scale = max |v| / M, or 1 where that is 0          M: the largest value of the 8-bit float
    stored = v / scale, rounded to nearest even, not beyond ±M

Scales are float32. What no delta touches is copied: its bytes and its scales.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.quantised import quantisation_config
from mergeengine.compiler.bound import Binding, BoundTensor
from mergeengine.compiler.graph import OutputTensor
from mergeengine.errors import CheckpointError
from mergeengine.lazy import algebra
from mergeengine.lazy.dtypes import FLOAT32
from mergeengine.lazy.nodes import Node
from mergeengine.lazy.weight import Derived, Quantised, node_of

LARGEST = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}
_WAY_OUT = "leave `quantization: keep` out, and quantise what is written with a tool for it"


def requantised(binding: Binding, target: Checkpoint) -> Binding:
    """The same with every weight that the target has in 8 bits as two tensors, it and its scales.

    CheckpointError where the target has none, or has scales that cannot be found again from the
    weights alone.
    """
    weights = {
        name: tensor
        for name, tensor in target.tensors.items()
        if isinstance(tensor, Derived) and tensor.quantised is not None
    }
    _check(target, weights)
    tensors = tuple(
        made
        for tensor in binding.tensors
        for made in _written(tensor, weights.get(tensor.output.name))
    )
    return replace(binding, tensors=tensors)


def _check(target: Checkpoint, weights: Mapping[str, Derived]) -> None:
    config: Mapping[str, Any] = quantisation_config(target.config) or {}
    problem = None
    if not weights:
        problem = "has no weights in 8-bit floats with scales"
    elif target.notes:  # scales of activations, which were measured by running that model
        problem = "has scales of activations, which are not those of the merged model"
    elif config.get("scale_fmt") not in (None, "float"):
        problem = f"has scales of the format {config['scale_fmt']!r}"
    else:
        for name, weight in weights.items():
            assert weight.quantised is not None
            if len(weight.shape) < 2 or 0 in weight.shape or not _fits(weight.quantised):
                shape = list(weight.quantised.scale.shape)
                problem = f"has {name} of {list(weight.shape)} with scales of {shape}"
    if problem is not None:
        raise CheckpointError(
            f"`quantization: keep` does not fit the target: {target} {problem}; {_WAY_OUT}"
        )


def _fits(held: Quantised) -> bool:
    return held.scale.shape in ((), (1,), _counts(held))


def _counts(held: Quantised) -> tuple[int, ...]:
    sizes = zip(held.weight.shape, held.factors, strict=True)
    return tuple(-(-size // factor) for size, factor in sizes)


def _written(tensor: BoundTensor, weight: Derived | None) -> Iterator[BoundTensor]:
    if weight is None or weight.quantised is None:
        yield tensor
        return
    held = weight.quantised
    if tensor.output.node is node_of(weight):
        pair = algebra.stored(held.weight), algebra.stored(held.scale)
        scale_dtype = held.scale.dtype
    else:
        pair = _pair(tensor.output.node, held)
        scale_dtype = FLOAT32
    output = OutputTensor(tensor.output.name, held.weight.dtype, FLOAT32, pair[0])
    yield replace(tensor, output=output)
    scale = OutputTensor(held.scale.name, scale_dtype, FLOAT32, pair[1])
    yield replace(tensor, output=scale, kind="scales", origin=held.scale, deltas=())


def _pair(value: Node, held: Quantised) -> tuple[Node, Node]:
    """What is stored, and its scales."""
    largest = LARGEST[held.weight.dtype.name]
    if held.scale.shape == _counts(held):
        most = algebra.block_max(value, held.factors)
        spread = algebra.repeat(most, held.factors, value.shape)
    else:
        most = spread = algebra.kth_magnitude(value, 1)
    stored = algebra.elementwise("div", value, _scale(spread, largest))
    stored = algebra.elementwise("minimum", stored, algebra.constant(largest))
    stored = algebra.elementwise("maximum", stored, algebra.constant(-largest))
    scale = _scale(most, largest)
    if held.scale.shape != scale.shape:
        zero = algebra.constant(0.0, held.scale.shape)
        scale = algebra.elementwise("add", zero, scale)
    return stored, scale


def _scale(most: Node, largest: float) -> Node:
    scale = algebra.elementwise("div", most, algebra.constant(largest))
    positive = algebra.elementwise("gt", scale, algebra.constant(0.0))
    return algebra.elementwise("where", positive, scale, algebra.constant(1.0))
