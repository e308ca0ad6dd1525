"""What part of a model a tensor is: found from its name and shape, without tables of architectures.

A tensor has several kinds: the roles below that hold for it, and the name of the module that it
belongs to, ``q_proj`` or ``router``: the last word of its name before ``weight`` or ``bias``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache

Shape = tuple[int, ...]

ROLES = ("attention", "mlp", "norm", "embedding", "head", "bias", "router", "expert")

_LAYER = re.compile(r"(?:^|\.)([0-9]{1,9})(?=\.|$)")
_BIAS = re.compile(r"(?:^|_)bias$")
_NORM = re.compile(r"norm|^ln(?:_|\d|$)", re.IGNORECASE)
_EMBEDDING = re.compile(r"embed(?!.*_out$)|^wte$|^wpe$|^shared$", re.IGNORECASE)
_HEAD = re.compile(r"(?:^|_)head$|classifier|^score$|^embed_out$|predictions", re.IGNORECASE)
_STATE_SPACE = re.compile(r"mamba|mixer|ssm", re.IGNORECASE)
_GATE = re.compile(r"(?:^|_)gate$")
_INSIDE = (
    ("attention", re.compile(r"attn|attention", re.IGNORECASE)),
    (
        "mlp",
        re.compile(r"mlp|ffn|feed_?forward|dense_?relu|moe(?![a-z])|^ff$|^fc\d", re.IGNORECASE),
    ),
    ("router", re.compile(r"router", re.IGNORECASE)),
    ("expert", re.compile(r"expert", re.IGNORECASE)),
)
# What else stands before the layers: the beginnings of vision and speech models.
_BEFORE = re.compile(r"^conv|stem|_token$|rotary|^ln_pre$|^pre_?lay", re.IGNORECASE)


def stack_of(name: str) -> tuple[str, int] | None:
    """What stands before a tensor's layer in its name, and the layer; None outside the layers.

    The layer is the first dotted part of the name that is an integer:
    ``model.layers.3.mlp.experts.7.w`` is in layer 3, ``lm_head.weight`` in none.
    """
    found = _LAYER.search(name)
    return (name[: found.start(1)], int(found[1])) if found else None


class Surroundings:
    """What a tensor's kinds depend on besides its own name and shape."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self._shapes = shapes
        self._beside_experts = set(_parents_of_experts(shapes))
        self._widths = _widths(shapes)
        self._vocabulary = max(
            (
                shape[0]
                for name, shape in shapes.items()
                if len(shape) == 2 and stack_of(name) is None and "embedding" in _said(name)
            ),
            default=0,
        )

    def kinds(self, name: str, shape: Shape) -> frozenset[str]:
        """The roles and the module's name of a tensor."""
        parts = name.split(".")
        stack = stack_of(name)
        found = set(_said(name))
        if "norm" in found and len(shape) > 1:
            found.discard("norm")
        if _BIAS.search(parts[-1]) and len(shape) <= 2:
            found.add("bias")
        if self._routes(parts):
            found.add("router")
        if "router" in found:
            found.discard("expert")
        if found & {"expert", "router"}:
            found.add("mlp")
        if stack is None:
            if self._is_head(found, shape):
                found.add("head")
        else:
            found.discard("head")
            if not found & {"attention", "mlp", "norm", "embedding"} and self._is_wide(
                name, stack[0], shape
            ):
                found.add("mlp")
        module = module_of(name)
        return frozenset(found | {module}) if module else frozenset(found)

    def _routes(self, parts: list[str]) -> bool:
        """``mlp.gate`` beside ``mlp.experts``; other gates are what they are called."""
        return any(
            _GATE.search(part) and ".".join(parts[:place]) in self._beside_experts
            for place, part in enumerate(parts)
        )

    def _is_head(self, found: set[str], shape: Shape) -> bool:
        """By its size: what has as many rows as the embedding has words, and is no embedding."""
        return (
            self._vocabulary > 0
            and self._vocabulary in shape
            and len(shape) <= 2
            and not found & {"embedding", "norm"}
        )

    def _is_wide(self, name: str, stack: str, shape: Shape) -> bool:
        """Whether a tensor belongs to a matrix that goes from a layer's width to more, or back."""
        if _STATE_SPACE.search(name):
            return False
        matrix = self._shapes.get(f"{name.rpartition('.')[0]}.weight", shape)
        width = self._widths.get(stack, 0)
        return len(matrix) == 2 and width in matrix and max(matrix) > width > 0


def stands_before(name: str) -> bool:
    """Whether a tensor outside the layers comes before them, by the words of its name."""
    return "embedding" in _said(name) or any(_BEFORE.search(part) for part in name.split("."))


def _said(name: str) -> frozenset[str]:
    """The roles that the words of a name tell."""
    found: frozenset[str] = frozenset()
    for part in name.split("."):
        found |= _roles(part)
    return found


@lru_cache(maxsize=4096)
def _roles(word: str) -> frozenset[str]:
    if word.isdecimal():
        return frozenset()
    if _NORM.search(word):  # a `post_attention_layernorm` is no part of the attention
        return frozenset({"norm", "embedding"} if _EMBEDDING.search(word) else {"norm"})
    if _HEAD.search(word):
        return frozenset({"head"})
    if _EMBEDDING.search(word):
        return frozenset({"embedding"})
    return frozenset(role for role, pattern in _INSIDE if pattern.search(word))


def module_of(name: str) -> str | None:
    """The module that a tensor belongs to: ``q_proj`` of ``layers.3.self_attn.q_proj.weight``."""
    *before, last = name.split(".")
    inside = before if last in ("weight", "bias") else [*before, last.removesuffix("_bias")]
    return next((part for part in reversed(inside) if part and not part.isdecimal()), None)


def _parents_of_experts(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        if "expert" in name:
            parts = name.split(".")
            for place, part in enumerate(parts):
                if part.startswith("expert"):
                    yield ".".join(parts[:place])


def _widths(shapes: Mapping[str, Shape]) -> dict[str, int]:
    """For each stack of layers the size of most of its norms: the width of what passes through."""
    sizes: dict[str, Counter[int]] = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            stack = stack_of(name)
            if stack is not None and "norm" in _said(name):
                sizes.setdefault(stack[0], Counter())[shape[0]] += 1
    return {
        stack: max(counted, key=lambda size: (counted[size], size))
        for stack, counted in sizes.items()
    }
