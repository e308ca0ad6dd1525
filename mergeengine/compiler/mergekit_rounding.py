"""Rounding as mergekit 0.1.5 does, to compare with it: ``numerics: {compatibility: mergekit}``.

Inputs are cast to a working dtype before the arithmetic. What happens then depends on the method,
and was found by comparing outputs (`benchmarks/compare_mergekit`):

* ``each``: weights are of the working dtype, and every operation is rounded to it, as torch's on
  tensors of that dtype are: computed in float32, then rounded. A sum over the sources is one
  operation, rounded at its end.
* ``fused``: float32 throughout, each product and the sum that it joins rounded together, as
  ``torch.add`` with ``alpha`` does on processors with fused multiply-add; rounded once at the end.
  Here that is float64 arithmetic, in which the product of two float32 numbers is exact.
* ``once``: float32 throughout, rounded once at the end.

No method knows of it: what a method has made is rewritten.
"""

from __future__ import annotations

from ctypes import c_float
from math import copysign, inf, isfinite
from struct import pack, unpack
from typing import Literal

from mergeengine.compiler.program import holder
from mergeengine.lazy import algebra
from mergeengine.lazy.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, DType
from mergeengine.lazy.nodes import Node, walk

Manner = Literal["each", "fused", "once"]

_MANNERS: dict[str, Manner] = {  # of all others: each
    "linear": "fused",
    **dict.fromkeys(("karcher", "nuslerp", "passthrough", "slerp"), "once"),
}

_EXACT = ("neg", "abs", "sign", "maximum", "minimum", "ge", "gt", "eq", "where")


def manner_of(method: str) -> Manner:
    """How mergekit rounds in the method of this name."""
    return _MANNERS.get(method, "each")


def compute_dtype(method: str, working: DType) -> DType:
    """The dtype in which the rewritten arithmetic is done."""
    wide = manner_of(method) == "fused" or working == FLOAT64
    return FLOAT64 if wide else FLOAT32


def weight(method: str, value: float, working: DType) -> float:
    """A source's weight as the method uses it."""
    return nearest(value, working if manner_of(method) == "each" else FLOAT32)


def rounded(method: str, root: Node, working: DType) -> Node:
    """What a method has made, with mergekit's roundings inside; its values are of ``working``."""
    manner = manner_of(method)
    inner = working if manner == "each" else FLOAT32
    compute = compute_dtype(method, working)
    made: dict[Node, Node] = {}
    sums: dict[Node, Node] = {}  # of sums, before their rounding
    exact: dict[Node, Node] = {}  # of products, before theirs

    def to(node: Node, dtype: DType) -> Node:
        return node if dtype == compute else algebra.round_to(node, dtype)

    def operand(node: Node) -> Node:
        """A node as another uses it: views stand over what is stored, so they are cast last."""
        return to(made[node], working) if _is_wider(node, working) else made[node]

    for node in walk(root):
        if not node.inputs or _is_view(node):
            made[node] = node
            continue
        inputs = [operand(child) for child in node.inputs]
        if node.kind != "elementwise" or node.op in _EXACT:
            made[node] = algebra.again(node, tuple(inputs))
            continue
        if node.op == "add":
            left, right = node.inputs
            if manner == "each":
                inputs[0] = sums.get(left, inputs[0])
            elif manner == "fused":
                inputs[1] = exact.get(right, inputs[1])
        inputs = [
            algebra.constant(nearest(each.value, inner), each.shape)
            if each.op == "constant" and (manner == "fused" or (node.op, place) == ("div", 1))
            else each
            for place, each in enumerate(inputs)
        ]
        plain = algebra.again(node, tuple(inputs))
        made[node] = to(plain, inner)
        if node.op == "add":
            sums[node] = plain
        elif node.op == "mul":
            exact[node] = plain
    return to(operand(root), working)


def nearest(value: float, dtype: DType) -> float:
    """The number of ``dtype`` nearest to a float, by way of float32, as torch has it."""
    if dtype == FLOAT64:
        return value
    single = c_float(value).value
    if dtype == FLOAT16 and isfinite(single):
        try:
            (single,) = unpack("<e", pack("<e", single))
        except OverflowError:
            single = copysign(inf, single)
    elif dtype == BFLOAT16 and isfinite(single):
        (bits,) = unpack("<I", pack("<f", single))
        bits += 0x7FFF + (bits >> 16 & 1)
        (single,) = unpack("<f", pack("<I", bits & 0xFFFF0000))
    return single


def _is_view(node: Node) -> bool:
    """Whether it is a view of what is stored, or a product of two."""
    below = holder(node)
    return below.op in ("stored", "product")


def _is_wider(node: Node, working: DType) -> bool:
    """Whether it is what files hold, and that may be numbers which are none of ``working``."""
    below = holder(node)
    return below.op == "product" or (
        below.op == "stored" and below.stored.dtype not in _HELD[working]
    )


_HELD = {
    BFLOAT16: (BFLOAT16,),
    FLOAT16: (FLOAT16,),
    FLOAT32: (FLOAT32, BFLOAT16, FLOAT16),
    FLOAT64: (FLOAT64, FLOAT32, BFLOAT16, FLOAT16),
}
"""Dtypes of which every number is one of another."""
