"""An output's expression as a short list of instructions over reused registers.

The graph's normal form (see ``lazy.algebra``) makes this simple: the pieces of a top-level
concatenation, and in each of them elementwise operations over views of what holds data.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from mergeengine.lazy import algebra
from mergeengine.lazy.algebra import Box
from mergeengine.lazy.dtypes import FLOAT64, DType
from mergeengine.lazy.nodes import GENERATED, WHOLE, Node, Shape

VIEWS = ("slice", "permute", "take", "repeat")
HOLDERS = ("stored", "row_sum", "column_sum", "block_max", "derived", *WHOLE, *GENERATED)


@dataclass(frozen=True, slots=True)
class Register:
    """A place for a block of intermediate values."""

    index: int


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number: a constant, or one that reductions of an earlier pass leave."""

    node: Node


Operand = Register | Scalar


@dataclass(frozen=True, slots=True)
class Load:
    """Read a view, converted to the arithmetic's dtype, into a register."""

    register: Register
    view: Node


@dataclass(frozen=True, slots=True)
class Apply:
    """Compute ``op`` of the operands into a register, which may be one of them."""

    register: Register
    op: str
    operands: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """What becomes of an output: a register's value, as soon as instruction ``after`` is done
    (later ones may use the register for something else), or a number, which is there from the
    start (-1). ``copy``: the load whose bytes it is, as they are, where nothing is computed.
    ``start``: what it is a sum upon, as a target with deltas is, where it is one: a load, by
    number, or a register that still holds it then.
    """

    value: Operand
    after: int = -1
    copy: int | None = None
    start: int | Register | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """How to compute any block of one piece, of one output or of several at once.

    ``flat``: every operand has the piece's shape and is contiguous in its file, so that a block
    is a flat range and dimensions do not matter.
    """

    shape: Shape
    instructions: tuple[Load | Apply, ...]
    results: tuple[Result, ...]
    registers: int
    flat: bool

    @property
    def loads(self) -> tuple[Load, ...]:
        return loaded(self.instructions)


def loaded(instructions: Sequence[Load | Apply]) -> tuple[Load, ...]:
    """The loads among instructions."""
    return tuple([i for i in instructions if isinstance(i, Load)])


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of the output and the program that computes it."""

    box: Box
    program: Program


def grid(root: Node) -> tuple[Box, ...]:
    """The boxes that an expression is concatenated of."""
    return tuple([box for box, _ in concatenated(root)])


def concatenated(root: Node) -> Iterator[tuple[Box, Node]]:
    """The expressions without concatenations that together cover ``root``, and where."""
    if root.op != "concat":
        yield tuple((0, n) for n in root.shape), root
        return
    dimension: int = root.attributes[0]
    start = 0
    for piece in root.inputs:
        for box, node in concatenated(piece):
            low, high = box[dimension]
            moved = (start + low, start + high)
            yield (*box[:dimension], moved, *box[dimension + 1 :]), node
        start += piece.shape[dimension]


def beside(root: Node, target: Node | None) -> Iterator[tuple[Box, Node, Node | None]]:
    """As ``concatenated``, each with the same part of ``target``."""
    for box, node in concatenated(root):
        if target is None or node is root:
            yield box, node, target
        else:
            yield box, node, algebra.slice_box(target, box)


def is_scalar(node: Node) -> bool:
    """A number: its value is known before any block is computed, once reductions have run."""
    if node.shape != () and node.op != "constant":
        return False
    return all(below.kind not in ("stored", "generated") for below in _below(node))


def _below(node: Node) -> Iterator[Node]:
    """The nodes that are evaluated together with this one: down to reductions."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        if current.kind in ("elementwise", "layout"):
            stack.extend(current.inputs)


def holder(view: Node) -> Node:
    """What holds the data of a view."""
    while view.op in VIEWS:
        view = view.inputs[0]
    return view


def flat_start(view: Node) -> tuple[Node, int]:
    """What holds a contiguous view, and the flat element of it that the view begins at."""
    held = holder(view)
    if view is held:
        return held, 0
    return held, view.attributes[0][0][0] * prod(held.shape[1:])  # a slice of the first dimension


def compile_expressions(*roots: Node, targets: Sequence[Node | None] = ()) -> Program:
    """Instructions for expressions of one shape, without concatenations. ``targets`` are what each
    may be a sum upon: see ``begun_upon``.

    Operands that need more registers are computed first (Sethi and Ullman 1970), a shared
    operand is computed once, and a result takes the place of an operand that dies with it.
    """
    uses: dict[Node, int] = {}
    need: dict[Node, int] = {}
    for node in walk_expressions(*roots):
        if node.kind == "elementwise":
            for child in set(node.inputs):
                uses[child] = uses.get(child, 0) + 1
            needs = sorted((need.get(child, 0) for child in set(node.inputs)), reverse=True)
            need[node] = max(count + held for held, count in enumerate(needs))
        else:
            need[node] = 1
    targets = targets or [None] * len(roots)
    begun = [begun_upon(root, target) for root, target in zip(roots, targets, strict=True)]
    for start in begun:
        if start is not None and start.kind == "elementwise":
            uses[start] += 1  # nothing else takes its register

    instructions: list[Load | Apply] = []
    places: dict[Node, Register] = {}
    results: dict[Node, Result] = {root: Result(Scalar(root)) for root in roots if is_scalar(root)}
    wanted = set(roots)
    numbers: set[Node] = set()  # operations on numbers alone: one value, whatever their shape
    free: list[int] = []
    count = loads = 0

    def acquire() -> Register:
        nonlocal count
        if free:
            return Register(free.pop())
        count += 1
        return Register(count - 1)

    stack = [(root, False) for root in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if node in places or is_scalar(node):
            continue
        if node.kind != "elementwise":
            places[node] = acquire()
            instructions.append(Load(places[node], node))
            if node in wanted:
                results[node] = Result(places[node], len(instructions) - 1, loads)
            loads += 1
        elif not ready:
            stack.append((node, True))
            children = dict.fromkeys(node.inputs)  # not a set: its order differs from run to run
            stack.extend((child, False) for child in sorted(children, key=need.__getitem__))
            continue
        else:
            operands = tuple(
                Scalar(child) if is_scalar(child) else places[child] for child in node.inputs
            )
            dying = []
            for child in dict.fromkeys(node.inputs):
                uses[child] -= 1
                if uses[child] == 0 and child in places:
                    dying.append(child)
            if all(is_scalar(child) or child in numbers for child in node.inputs):
                numbers.add(node)
            fits = (
                child
                for child in dying
                if child.shape == node.shape and (child in numbers) == (node in numbers)
            )
            heir = next(fits, None)
            place = places[heir] if heir is not None else acquire()
            instructions.append(Apply(place, node.op, operands))
            free.extend(places[child].index for child in dying if child is not heir)
            places[node] = place
            if node in wanted:
                results[node] = Result(place, len(instructions) - 1)
        if node in wanted and not uses.get(node):
            free.append(places[node].index)
    shape = roots[0].shape
    flat = all(
        isinstance(i, Apply) or (i.view.shape == shape and contiguous(i.view)) for i in instructions
    )
    starts: dict[Node, int | Register] = dict(places)
    starts.update((load.view, number) for number, load in enumerate(loaded(instructions)))
    found = [
        results[root] if start is None else replace(results[root], start=starts[start])
        for root, start in zip(roots, begun, strict=True)
    ]
    return Program(shape, tuple(instructions), tuple(found), count, flat)


def begun_upon(root: Node, target: Node | None = None) -> Node | None:
    """What an expression without concatenations is a sum upon, None where it is no sum: its
    ``target``, where that is the first operand of its first addition. Where no target is known it
    is what stands there, if that is a view."""
    node = root
    while node.op == "add" and node is not target:
        node = node.inputs[0]
    if node is root or is_scalar(node) or node.shape != root.shape:
        return None
    if target is None:
        return None if node.kind == "elementwise" else node
    return node if node is target else None


def contiguous(view: Node) -> bool:
    """Whether consecutive elements of the view are consecutive in what holds it."""
    if view.op in HOLDERS:
        return True
    if view.op != "slice":
        return False
    box: Box = view.attributes[0]
    whole = view.inputs[0].shape
    return all(b == (0, n) for b, n in zip(box[1:], whole[1:], strict=True))


def walk_expressions(*roots: Node) -> Iterator[Node]:
    """The nodes of expressions, each once, inputs first: elementwise ones, numbers and views."""
    seen: set[Node] = set()
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if node in seen:
            continue
        if ready or node.kind != "elementwise" or is_scalar(node):
            seen.add(node)
            yield node
        else:
            stack.append((node, True))
            stack.extend((child, False) for child in node.inputs)


def prerequisites(compute: DType, *roots: Node) -> list[tuple[Node, DType]]:
    """The reductions and whole nodes below ``roots``, in an order in which they can be run, and the
    dtype of each one's arithmetic.

    Where a sum, which is taken in float64, is over what depends on a threshold, the threshold is
    found twice: as each of the two arithmetics sees the numbers.
    """
    if not any(root.passes for root in roots):  # of most there are none
        return []
    found: dict[tuple[Node, str], DType] = {}
    seen: set[tuple[Node, str]] = set()
    stack = [(root, compute, False) for root in reversed(roots)]
    while stack:
        node, around, ready = stack.pop()
        own = arithmetic_of(node, around)
        if ready:
            found[node, own.name] = own
        elif node.passes and (node, own.name) not in seen:
            seen.add((node, own.name))
            if node.kind in ("reduction", "whole"):
                stack.append((node, own, True))
            stack.extend((child, own, False) for child in reversed(node.inputs))
    return [(node, dtype) for (node, _), dtype in found.items()]


def arithmetic_of(node: Node, compute: DType) -> DType:
    """The dtype in which a node is computed where ``compute`` is that around it: sums are taken in
    float64 throughout, magnitudes are ranked and whole nodes computed as the arithmetic around them
    sees them."""
    return FLOAT64 if node.op in ("sum", "row_sum", "column_sum", "derived") else compute


def tile_shape(shape: Shape, elements: int) -> Shape:
    """The largest leading part of ``shape`` (whole trailing dimensions) within ``elements``."""
    tile = list(shape)
    for dimension in range(len(shape)):
        inner = prod(tile[dimension + 1 :])
        tile[dimension] = max(1, min(shape[dimension], elements // max(1, inner)))
        if tile[dimension] * inner <= elements:
            break
    return tuple(tile)
