"""One tensor out of several, or a part of one: the same weights as another release lays them out.

Only what is exact, and known from names and shapes: experts in one tensor each or stacked, the
projections of attention and of gated networks apart or one over the other.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mergeengine.lazy import algebra
from mergeengine.lazy.nodes import Node
from mergeengine.lazy.weight import Derived, Weight, node_of

Shape = tuple[int, ...]

# Components of names that mean the same, the newer first.
_SPELLINGS = (
    (re.compile(r"\bblock_sparse_moe\b"), "mlp"),
    (re.compile(r"(\bexperts\.\d+\.)w1\b"), r"\1gate_proj"),
    (re.compile(r"(\bexperts\.\d+\.)w2\b"), r"\1down_proj"),
    (re.compile(r"(\bexperts\.\d+\.)w3\b"), r"\1up_proj"),
    (re.compile(r"\b(LayerNorm|layer_norm)\.gamma$"), r"\1.weight"),
    (re.compile(r"\b(LayerNorm|layer_norm)\.beta$"), r"\1.bias"),
    (re.compile(r"\bweight_g$"), "parametrizations.weight.original0"),
    (re.compile(r"\bweight_v$"), "parametrizations.weight.original1"),
)
_EXPERT = re.compile(r"(?P<stack>.*\bexperts)\.(?P<number>\d{1,6})\.(?P<part>\w+)\.weight")
_STACKED = re.compile(r"(?P<stack>.*\bexperts)\.(?P<part>gate_up_proj|down_proj)")
# Rows of the parts, one over the other, in this order: ``<before>qkv_proj.weight``.
_FUSED = {
    "qkv_proj.": ("q_proj", "k_proj", "v_proj"),
    "in_proj_": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj.": ("gate_proj", "up_proj"),
}
_PART = re.compile(r"(|.*\.)(\w+)\.(weight|bias)")


def spelled(name: str) -> str:
    """A name in the newer of its spellings."""
    for pattern, newer in _SPELLINGS:
        name = pattern.sub(newer, name)
    return name


@dataclass(frozen=True, slots=True)
class Remade:
    """A tensor made of others: its expression, and the names of what it is made of."""

    node: Node
    parts: tuple[str, ...]

    def weight(self, of: Mapping[str, Weight]) -> Derived:
        """The same as a tensor, which is called what it is made of."""
        first = of[self.parts[0]]
        more = f" and {len(self.parts) - 1} more" if len(self.parts) > 1 else ""
        return Derived(first.source, f"{first.name}{more}", first.dtype, self.node)


def remake(
    name: str, shape: Shape, tensors: Mapping[str, Weight], shapes: Mapping[str, Shape]
) -> Remade | None:
    """The tensor ``name`` of ``shape`` out of ``tensors``, which lays it out in another way.

    ``shapes`` are those of the model that ``name`` is of: what lies beside it there says where a
    part begins. None where there is no way, or none that is certain.
    """
    for attempt in (_from_stack, _from_experts, _from_fused, _from_parts):
        for remade in attempt(name, tensors, shapes):
            if remade.node.shape == shape:
                return remade
    return None


def _from_stack(
    name: str, tensors: Mapping[str, Weight], shapes: Mapping[str, Shape]
) -> Iterator[Remade]:
    """An expert of ``experts.gate_up_proj`` [experts, 2 · inner, hidden] or ``experts.down_proj``
    [experts, hidden, inner], or of these with the last two dimensions exchanged."""
    found = _EXPERT.fullmatch(name)
    if found is None:
        return
    part, number, shape = found["part"], int(found["number"]), shapes[name]
    stacked = f"{found['stack']}.{'down_proj' if part == 'down_proj' else 'gate_up_proj'}"
    tensor = tensors.get(stacked)
    if tensor is None or len(tensor.shape) != 3 or len(shape) != 2 or number >= tensor.shape[0]:
        return
    node = _upright(node_of(tensor), shape, part)
    if node is None:
        return
    rows = {"gate_proj": (0, shape[0]), "up_proj": (shape[0], 2 * shape[0])}
    low, high = rows.get(part, (0, shape[0]))
    if part in (*rows, "down_proj") and high <= node.shape[1]:
        box = ((number, number + 1), (low, high), (0, shape[1]))
        yield Remade(algebra.squeeze(algebra.slice_box(node, box)), (stacked,))


def _upright(node: Node, shape: Shape, part: str) -> Node | None:
    """A stack with the rows of an expert of ``shape`` before its columns; None if unclear."""
    rows, columns = (shape[0], shape[1]) if part == "down_proj" else (2 * shape[0], shape[1])
    given = node.shape[1:]
    if given == (rows, columns):
        return node  # also where it is square: stacks are stored so unless shapes say otherwise
    return algebra.permute(node, (0, 2, 1)) if given == (columns, rows) else None


def _from_experts(
    name: str, tensors: Mapping[str, Weight], shapes: Mapping[str, Shape]
) -> Iterator[Remade]:
    """A stack of the experts of a model that has each in tensors of its own."""
    found = _STACKED.fullmatch(name)
    if found is None or len(shapes[name]) != 3:
        return
    parts = ("down_proj",) if found["part"] == "down_proj" else ("gate_proj", "up_proj")
    names, pieces = [], []
    for number in range(shapes[name][0]):
        own = [f"{found['stack']}.{number}.{part}.weight" for part in parts]
        if not all(each in tensors for each in own):
            return
        names += own
        nodes = [node_of(tensors[each]) for each in own]
        if len({node.shape for node in nodes}) > 1 or len(nodes[0].shape) != 2:
            return
        pieces.append(algebra.unsqueeze(algebra.concat(nodes)))
    if len({piece.shape for piece in pieces}) == 1:
        node = algebra.concat(pieces)
        if node.shape != shapes[name]:
            node = algebra.permute(node, (0, 2, 1))
        yield Remade(node, tuple(names))


def _from_fused(
    name: str, tensors: Mapping[str, Weight], shapes: Mapping[str, Shape]
) -> Iterator[Remade]:
    """A part of what lies one over the other in a single tensor."""
    found = _PART.fullmatch(name)
    if found is None:
        return
    before, own, kind = found.groups()
    for joint, parts in _FUSED.items():
        names = [f"{before}{part}.{kind}" for part in parts]
        tensor = tensors.get(f"{before}{joint}{kind}")
        if own not in parts or tensor is None or not all(shapes.get(each) for each in names):
            continue
        sizes = [shapes[each][0] for each in names]
        if tensor.shape[:1] == (sum(sizes),):
            start = sum(sizes[: names.index(name)])
            box = ((start, start + shapes[name][0]), *((0, n) for n in tensor.shape[1:]))
            node = algebra.slice_box(node_of(tensor), box)
            yield Remade(node, (f"{before}{joint}{kind}",))


def _from_parts(
    name: str, tensors: Mapping[str, Weight], shapes: Mapping[str, Shape]
) -> Iterator[Remade]:
    """What another model has in tensors of their own, one over the other."""
    for joint, parts in _FUSED.items():
        found = re.fullmatch(rf"(|.*\.){re.escape(joint)}(weight|bias)", name)
        names = tuple(f"{found[1]}{part}.{found[2]}" for part in parts) if found else ()
        if names and all(each in tensors and tensors[each].shape for each in names):
            nodes = [node_of(tensors[each]) for each in names]
            if len({node.shape[1:] for node in nodes}) == 1:
                yield Remade(algebra.concat(nodes), names)
