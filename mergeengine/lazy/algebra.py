"""Building nodes: shapes are checked, zeros vanish, and layout is pushed to where data lie.

Every graph built here is in one normal form, which is what makes blocks inside tensors easy:

* ``concat`` is only ever at the top: an operation on a concatenation becomes a concatenation
  of operations on its pieces;
* ``slice``, ``take``, ``permute`` and ``repeat`` stand directly over what holds data (a stored
  tensor, a reduction or a whole node), in this order from the inside out: the *view* of it;
* ``product`` stands directly over two views, and nothing of layout stands over it;
* everything between is elementwise.

A passage that is multiplied by zero is removed: its tensors are never read. (So 0 · NaN is 0
here: a mask of zero means "not touched", not "computed and cancelled".)
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import groupby
from math import prod
from typing import Literal

from mergeengine.lazy.dtypes import FLOAT64, DType
from mergeengine.lazy.nodes import BINARY, ROUNDINGS, UNARY, Node, Shape, intern, walk
from mergeengine.lazy.stored import Stored

Box = tuple[tuple[int, int], ...]
End = Literal["largest", "smallest"]


def stored(tensor: Stored) -> Node:
    """The leaf of a tensor in a file."""
    return intern("stored", (), tensor.shape, tensor)


def constant(value: float, shape: Shape = ()) -> Node:
    """A number, of shape () unless it stands for a tensor of equal numbers."""
    return intern("constant", (), shape, float(value))


def is_constant(node: Node, value: float) -> bool:
    return node.op == "constant" and node.value == value


# --- generated ---------------------------------------------------------------------------


def random(key: int, shape: Shape) -> Node:
    """Numbers from 0 (included) to 1 (excluded), in steps of 2**-24: a function of ``key`` (64
    bits) and of the flat position alone."""
    return intern("random", (), shape, key)


def rows(ranges: Sequence[tuple[int, int]], shape: Shape) -> Node:
    """1 in the rows from the first to the last of each range, 0 elsewhere; shape (rows, 1, ...)."""
    if not shape or any(not 0 <= first <= last < shape[0] for first, last in ranges):
        raise ValueError(f"no rows {ranges} in a tensor of shape {shape}")
    return intern("rows", (), (shape[0], *(1 for _ in shape[1:])), *ranges)


def upto(place: Node, shape: Shape) -> Node:
    """1 at the flat positions up to ``place`` (a ``kth_place``), 0 after it."""
    return intern("upto", (place,), shape)


# --- elementwise -------------------------------------------------------------------------


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """The common shape. Operands are numbers (shape ()) or have equal rank, with 1 repeated."""
    full = [shape for shape in shapes if shape != ()]
    if not full:
        return ()
    if full.count(full[0]) == len(full):
        return full[0]
    result = []
    for sizes in zip(*full, strict=True) if len({len(s) for s in full}) == 1 else [None]:
        distinct = set(sizes or ()) - {1}
        if sizes is None or len(distinct) > 1:
            raise ValueError(f"shapes do not fit together: {', '.join(map(str, full))}")
        result.append(distinct.pop() if distinct else 1)
    return tuple(result)


def elementwise(op: str, *inputs: Node) -> Node:
    """``op`` on operands of one shape (or numbers), simplified where zeros and ones allow it."""
    arity = 3 if op == "where" else 2 if op in BINARY else 1 if op in UNARY else 0
    if arity != len(inputs):
        raise ValueError(f"no elementwise operation {op!r} of {len(inputs)} operands")
    shape = broadcast([node.shape for node in inputs])
    simple = _simplified(op, inputs, shape)
    if simple is not None:
        return simple
    joined = [node for node in inputs if node.op == "concat"]
    if joined:
        dimension: int = joined[0].attributes[0]
        pieces, start = [], 0
        for piece in joined[0].inputs:
            stop = start + piece.shape[dimension]
            box = _span(shape, dimension, start, stop)
            pieces.append(elementwise(op, *(restrict(node, box) for node in inputs)))
            start = stop
        return concat(pieces, dimension)
    return intern(op, inputs, shape)


def round_to(node: Node, dtype: DType) -> Node:
    """What an output of ``dtype`` holds of these values: rounded to nearest even, NaNs unified.

    As exact as the arithmetic around it, which is what it rounds the values of. ValueError for a
    dtype that no output has. float64 holds whatever is computed.
    """
    if dtype == FLOAT64:
        return node
    if f"to_{dtype}" not in ROUNDINGS:
        raise ValueError(f"values are not rounded to {dtype}")
    return elementwise(f"to_{dtype}", node)


def rebuilt(roots: Sequence[Node], leaves: Callable[[Stored], Node | None]) -> list[Node]:
    """Expressions with other nodes in the place of stored tensors, where ``leaves`` gives one.

    The shapes must be equal. The result is in normal form, whatever the new nodes are.
    """
    made: dict[Node, Node] = {}
    for node in walk(*roots):
        if node.op == "stored":
            made[node] = leaves(node.stored) or node
        elif all(made[child] is child for child in node.inputs):
            made[node] = node
        else:
            made[node] = again(node, tuple([made[child] for child in node.inputs]))
    return [made[root] for root in roots]


def again(node: Node, inputs: tuple[Node, ...]) -> Node:
    """The operation of ``node`` on other inputs, of the same shapes."""
    match node.op:
        case "slice":
            return slice_box(inputs[0], node.attributes[0])
        case "permute":
            return permute(inputs[0], node.attributes)
        case "take":
            return take(inputs[0], node.attributes[1], node.attributes[0])
        case "concat":
            return concat(inputs, node.attributes[0])
        case "sum":
            return total(inputs[0])
        case "row_sum":
            return row_sum(inputs[0], *node.attributes)
        case "column_sum":
            return column_sum(inputs[0])
        case "kth_magnitude" if len(inputs) == 1:
            return kth_magnitude(inputs[0], *node.attributes)
        case "derived":
            return derived(node.attributes[0], *inputs, arguments=node.attributes[1:])
        case "low_rank":
            return low_rank(inputs[0], *node.attributes)
        case "isotropic" | "joint_low_rank":
            return _whole(node.op, inputs[0], node.shape, *node.attributes)
    if node.kind == "elementwise":
        return elementwise(node.op, *inputs)
    return intern(node.op, inputs, node.shape, *node.attributes)


def _simplified(op: str, inputs: tuple[Node, ...], shape: Shape) -> Node | None:
    if op == "add":
        left, right = inputs
        if is_constant(right, 0.0) and left.shape == shape:
            return left
        if is_constant(left, 0.0) and right.shape == shape:
            return right
    elif op == "sub":
        left, right = inputs
        if is_constant(right, 0.0) and left.shape == shape:
            return left
        if left is right:
            return constant(0.0, shape)
    elif op == "mul":
        for factor, other in (inputs, inputs[::-1]):
            if is_constant(factor, 0.0):
                return constant(0.0, shape)
            if is_constant(factor, 1.0) and other.shape == shape:
                return other
    elif op == "div" and is_constant(inputs[1], 1.0) and inputs[0].shape == shape:
        return inputs[0]
    return None


# --- layout ------------------------------------------------------------------------------


def slice_box(node: Node, box: Box) -> Node:
    """The part ``box`` (start and stop for each dimension) of a tensor."""
    if len(box) != len(node.shape) or any(
        not 0 <= start <= stop <= size for (start, stop), size in zip(box, node.shape, strict=True)
    ):
        raise ValueError(f"no part {box} in a tensor of shape {node.shape}")
    shape = tuple(stop - start for start, stop in box)
    if shape == node.shape:
        return node
    match node.op:
        case "constant":
            return constant(node.value, shape)
        case "slice":
            base: Box = node.attributes[0]
            moved = tuple((s + b, e + b) for (s, e), (b, _) in zip(box, base, strict=True))
            return intern("slice", node.inputs, shape, moved)
        case "permute":
            order: tuple[int, ...] = node.attributes
            inner = tuple(box[order.index(d)] for d in range(len(order)))
            return permute(slice_box(node.inputs[0], inner), order)
        case "take":
            dimension, indices = node.attributes
            start, stop = box[dimension]
            size = node.inputs[0].shape[dimension]
            rest = (*box[:dimension], (0, size), *box[dimension + 1 :])
            return take(slice_box(node.inputs[0], rest), indices[start:stop], dimension)
        case "concat":
            dimension = node.attributes[0]
            start, stop = box[dimension]
            pieces, offset = [], 0
            for piece in node.inputs:
                end = offset + piece.shape[dimension]
                low, high = max(start, offset), min(stop, end)
                if low < high:
                    part = (low - offset, high - offset)
                    pieces.append(slice_box(piece, (*box[:dimension], part, *box[dimension + 1 :])))
                offset = end
            return concat(pieces, dimension) if pieces else constant(0.0, shape)
        case "repeat":
            return _repeat_part(node, box)
        case "product":
            left, right = node.inputs
            *batch, rows, columns = box
            ranks = (0, left.shape[-1])
            return product(
                slice_box(left, (*batch, rows, ranks)), slice_box(right, (*batch, ranks, columns))
            )
    if node.kind == "elementwise":
        return elementwise(node.op, *(restrict(child, box) for child in node.inputs))
    return intern("slice", (node,), shape, box)


def restrict(node: Node, box: Box) -> Node:
    """The operand's part for ``box`` of the broadcast result."""
    if node.shape == ():
        return node
    fitted = zip(box, node.shape, strict=True)
    return slice_box(node, tuple((0, min(1, b - a)) if n == 1 else (a, b) for (a, b), n in fitted))


def permute(node: Node, order: Sequence[int]) -> Node:
    """Dimensions reordered: dimension i of the result is dimension ``order[i]`` of ``node``."""
    order = tuple(order)
    if sorted(order) != list(range(len(node.shape))):
        raise ValueError(f"not an order of {len(node.shape)} dimensions: {order}")
    shape = tuple(node.shape[d] for d in order)
    if order == tuple(range(len(order))):
        return node
    if node.op == "constant":
        return constant(node.value, shape)
    if node.op == "permute":
        return permute(node.inputs[0], tuple(node.attributes[d] for d in order))
    if node.op == "concat":
        pieces = [permute(piece, order) for piece in node.inputs]
        return concat(pieces, order.index(node.attributes[0]))
    if node.op == "repeat":
        factors = [node.attributes[d] for d in order]
        return intern("repeat", (permute(node.inputs[0], order),), shape, *factors)
    if node.op == "product":
        last = len(order) - 1
        if order[:-2] != tuple(range(last - 1)):
            raise ValueError("a product's own two dimensions may change places, no others")
        left, right = node.inputs
        return product(permute(right, order), permute(left, order))
    if node.kind == "elementwise":
        moved = (child if child.shape == () else permute(child, order) for child in node.inputs)
        return elementwise(node.op, *moved)
    return intern("permute", (node,), shape, *order)


def take(node: Node, indices: Sequence[int], dimension: int = 0) -> Node:
    """Rows ``indices`` (or slices along another dimension); index -1 gives a row of zeros."""
    indices = tuple(indices)
    size = node.shape[dimension]
    if any(not -1 <= index < size for index in indices):
        raise ValueError(f"an index is outside 0..{size - 1} (or -1 for zeros)")
    shape = (*node.shape[:dimension], len(indices), *node.shape[dimension + 1 :])
    if indices == tuple(range(size)):
        return node
    if node.op == "constant" and node.value == 0.0:
        return constant(0.0, shape)
    if node.op == "permute":
        order: tuple[int, ...] = node.attributes
        return permute(take(node.inputs[0], indices, order[dimension]), order)
    if node.op == "take" and node.attributes[0] == dimension:
        inner = node.attributes[1]
        return take(node.inputs[0], [inner[i] if i >= 0 else -1 for i in indices], dimension)
    if node.op == "repeat" and node.attributes[dimension] == (1, 0):
        return intern(
            "repeat", (take(node.inputs[0], indices, dimension),), shape, *node.attributes
        )
    if node.op == "product" and -1 not in indices:
        left, right = node.inputs
        if dimension != len(shape) - 1:
            left = take(left, indices, dimension)
        if dimension != len(shape) - 2:
            right = take(right, indices, dimension)
        return product(left, right)
    if node.kind == "elementwise" or node.op in ("concat", "repeat", "product"):
        # Through an operation only real rows may pass: f(0) need not be 0.
        return _take_runs(node, indices, dimension)
    return intern("take", (node,), shape, dimension, indices)


def _take_runs(node: Node, indices: tuple[int, ...], dimension: int) -> Node:
    if node.kind == "elementwise" and -1 not in indices:
        moved = [
            child
            if child.shape == () or child.shape[dimension] == 1 != node.shape[dimension]
            else take(child, indices, dimension)
            for child in node.inputs
        ]
        return elementwise(node.op, *moved)
    pieces = []
    position = 0
    while position < len(indices):
        first = indices[position]
        length = 1
        while position + length < len(indices) and indices[position + length] == (
            first + length if first >= 0 else -1
        ):
            length += 1
        if first < 0:
            shape = (*node.shape[:dimension], length, *node.shape[dimension + 1 :])
            pieces.append(constant(0.0, shape))
        else:
            pieces.append(slice_box(node, _span(node.shape, dimension, first, first + length)))
        position += length
    return concat(pieces, dimension)


def concat(nodes: Sequence[Node], dimension: int = 0) -> Node:
    """Tensors one after the other along ``dimension``."""
    if not nodes:
        raise ValueError("nothing to concatenate")
    first = nodes[0].shape
    if not 0 <= dimension < len(first):
        raise ValueError(f"no dimension {dimension} in a tensor of shape {first}")
    for node in nodes:
        if len(node.shape) != len(first) or any(
            n != m for d, (n, m) in enumerate(zip(node.shape, first, strict=True)) if d != dimension
        ):
            raise ValueError(f"cannot concatenate shapes {first} and {node.shape}")
    flat: list[Node] = []
    for node in nodes:
        same = node.op == "concat" and node.attributes[0] == dimension
        flat.extend(node.inputs if same else (node,))
    flat = [node for node in flat if node.shape[dimension]] or flat[:1]
    flat = _join_constants(flat, dimension)
    if len(flat) == 1:
        return flat[0]
    total = sum(node.shape[dimension] for node in flat)
    shape = (*first[:dimension], total, *first[dimension + 1 :])
    return intern("concat", tuple(flat), shape, dimension)


def _join_constants(nodes: list[Node], dimension: int) -> list[Node]:
    joined: list[Node] = []
    key: Callable[[Node], object] = lambda n: n.value.hex() if n.op == "constant" else id(n)  # noqa: E731
    for _, group in groupby(nodes, key):
        run = list(group)
        if run[0].op == "constant":
            shape = run[0].shape
            total = sum(node.shape[dimension] for node in run)
            run = [constant(run[0].value, (*shape[:dimension], total, *shape[dimension + 1 :]))]
        joined.extend(run)
    return joined


def repeat(node: Node, factors: Sequence[int], shape: Shape) -> Node:
    """Each element of a view repeated ``factors[d]`` times along dimension d, cut off at ``shape``:
    the scales of blocks, as a tensor of the shape of what they scale."""
    fits = len(factors) == len(shape) == len(node.shape) and all(
        factor >= 1 and -(-size // factor) == count
        for factor, size, count in zip(factors, shape, node.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"a tensor of shape {node.shape} repeated {factors} does not give {shape}")
    if node.op == "constant":
        return constant(node.value, shape)
    if shape == node.shape:
        return node
    return intern("repeat", (_view(node),), shape, *((factor, 0) for factor in factors))


def _repeat_part(node: Node, box: Box) -> Node:
    ranges, attributes = [], []
    for (factor, first), (start, stop) in zip(node.attributes, box, strict=True):
        low = (start + first) // factor
        ranges.append((low, max(low, -(-(stop + first) // factor))))
        attributes.append((factor, start + first - low * factor if factor > 1 else 0))
    inner = slice_box(node.inputs[0], tuple(ranges))
    shape = tuple(stop - start for start, stop in box)
    if inner.op == "constant" or 0 in shape:
        return constant(inner.value if inner.op == "constant" else 0.0, shape)
    return inner if inner.shape == shape else intern("repeat", (inner,), shape, *attributes)


def product(left: Node, right: Node) -> Node:
    """The matrix product of two views of shape (..., m, k) and (..., k, n).

    Terms are added in the order of k, each product and sum rounded, so that a part of the result
    is the product of the parts, to the bit. Meant for factors of few ranks: an adapter's.
    """
    *batch, rows, ranks = left.shape if len(left.shape) > 1 else (0, 0)
    *other, same, columns = right.shape if len(right.shape) > 1 else (0, 1)
    if batch != other or ranks != same:
        raise ValueError(f"no product of shapes {left.shape} and {right.shape}")
    shape = (*batch, rows, columns)
    if not ranks or 0 in shape or is_constant(left, 0.0) or is_constant(right, 0.0):
        return constant(0.0, shape)
    return intern("product", (_view(left), _view(right)), shape)


def _view(node: Node) -> Node:
    """``node``, which must be a view of what is stored, or of a reduction with a shape."""
    below = node
    while below.op in ("slice", "take", "permute", "repeat"):
        below = below.inputs[0]
    if below.op not in ("stored", "block_max", "row_sum", "column_sum"):
        raise ValueError(f"expected a view of a stored tensor, found {below.op}")
    return node


def unsqueeze(node: Node) -> Node:
    """One more dimension, the first, of size 1: of what is stored, and of expressions over it."""
    shape = (1, *node.shape)
    match node.op:
        case "stored":
            return stored(replace(node.stored, shape=shape))
        case "constant":
            return constant(node.value, shape)
        case "slice":
            return slice_box(unsqueeze(node.inputs[0]), ((0, 1), *node.attributes[0]))
        case "permute":
            return permute(unsqueeze(node.inputs[0]), (0, *(d + 1 for d in node.attributes)))
        case "take":
            return take(unsqueeze(node.inputs[0]), node.attributes[1], node.attributes[0] + 1)
        case "concat":
            return concat([unsqueeze(each) for each in node.inputs], node.attributes[0] + 1)
        case "repeat":
            return intern("repeat", (unsqueeze(node.inputs[0]),), shape, (1, 0), *node.attributes)
        case "product":
            return product(*map(unsqueeze, node.inputs))
    if node.kind == "elementwise":
        inputs = (each if each.shape == () else unsqueeze(each) for each in node.inputs)
        return elementwise(node.op, *inputs)
    raise ValueError(f"cannot give another shape to a {node.op}")


def squeeze(node: Node) -> Node:
    """Without the first dimension, which has size 1: of what is stored, and of expressions."""
    if node.shape[:1] != (1,):
        raise ValueError(f"the first dimension of {node.shape} is not 1")
    shape = node.shape[1:]
    match node.op:
        case "stored":
            return stored(replace(node.stored, shape=shape))
        case "constant":
            return constant(node.value, shape)
        case "slice" if node.inputs[0].op == "stored":
            (place, _), *box = node.attributes[0]
            whole = node.inputs[0].stored
            inner = whole.shape[1:]
            skipped = place * prod(inner) * whole.dtype.itemsize
            part = stored(replace(whole, shape=inner, offset=whole.offset + skipped))
            return slice_box(part, tuple(box))
        case "permute" if node.attributes[0] == 0:
            return permute(squeeze(node.inputs[0]), [d - 1 for d in node.attributes[1:]])
        case "permute" if node.attributes[0] == len(shape):
            return permute(_without_last(node.inputs[0]), node.attributes[1:])
        case "take" if node.attributes[0] > 0:
            return take(squeeze(node.inputs[0]), node.attributes[1], node.attributes[0] - 1)
        case "concat" if node.attributes[0] > 0:
            return concat([squeeze(each) for each in node.inputs], node.attributes[0] - 1)
        case "repeat" if node.inputs[0].shape[0] == 1:
            return intern("repeat", (squeeze(node.inputs[0]),), shape, *node.attributes[1:])
        case "product" if len(shape) > 1:
            return product(*map(squeeze, node.inputs))
    if node.kind == "elementwise":
        inputs = (each if each.shape == () else squeeze(each) for each in node.inputs)
        return elementwise(node.op, *inputs)
    raise ValueError(f"cannot give another shape to a {node.op}")


def _without_last(node: Node) -> Node:
    """One element of the last dimension of what is stored, without that dimension: of the last two
    seen as one, every so many-th."""
    box: Box = tuple((0, size) for size in node.shape)
    if node.op == "slice":
        box, node = node.attributes[0], node.inputs[0]
    if node.op != "stored" or len(box) < 2:
        raise ValueError(f"cannot give another shape to a {node.op}")
    *outer, (low, high), (place, _) = box
    *sizes, rows, count = node.shape
    flat = stored(replace(node.stored, shape=(*sizes, rows * count)))
    part = slice_box(flat, (*outer, (0, rows * count)))
    return take(part, [row * count + place for row in range(low, high)], len(sizes))


def _span(shape: Shape, dimension: int, start: int, stop: int) -> Box:
    return tuple((start, stop) if d == dimension else (0, n) for d, n in enumerate(shape))


# --- reductions and whole nodes ------------------------------------------------------------


def total(node: Node) -> Node:
    """The sum of all elements, in float64."""
    return constant(0.0) if is_constant(node, 0.0) else intern("sum", (node,), ())


def row_sum(node: Node, kept: int = 1) -> Node:
    """Sums over all but the first ``kept`` dimensions, in float64; shape (rows, 1, 1, ...)."""
    if not 1 <= kept <= len(node.shape):
        raise ValueError(f"no rows of {kept} dimensions in a tensor of shape {node.shape}")
    shape = (*node.shape[:kept], *(1 for _ in node.shape[kept:]))
    zero = is_constant(node, 0.0)
    return constant(0.0, shape) if zero else intern("row_sum", (node,), shape, kept)


def column_sum(node: Node) -> Node:
    """Sums over the first dimension, in float64; shape (1, ...)."""
    if not node.shape:
        raise ValueError("a scalar has no columns")
    shape = (1, *node.shape[1:])
    zero = is_constant(node, 0.0) or not node.numel
    return constant(0.0, shape) if zero else intern("column_sum", (node,), shape)


def block_max(node: Node, factors: Sequence[int]) -> Node:
    """The largest absolute value of each block of ``factors`` elements, cut off at the tensor's
    end: of matrices, or stacks of them in which a block lies in one matrix."""
    if len(node.shape) < 2 or len(factors) != len(node.shape) or not node.numel:
        raise ValueError(f"no blocks of {factors} in a tensor of shape {node.shape}")
    if any(factor != 1 for factor in factors[:-2]) or min(factors) < 1:
        raise ValueError(f"blocks of {factors} do not lie in one matrix")
    shape = tuple(-(-size // factor) for size, factor in zip(node.shape, factors, strict=True))
    if node.op == "constant":
        return constant(abs(node.value), shape)
    return intern("block_max", (node,), shape, *factors)


def kth_magnitude(node: Node, k: int) -> Node:
    """The k-th largest absolute value, k counted from 1."""
    if not 1 <= k <= node.numel:
        raise ValueError(f"no {k}-th magnitude among {node.numel} elements")
    return constant(0.0) if is_constant(node, 0.0) else intern("kth_magnitude", (node,), (), k)


def kth_place(node: Node, threshold: Node, k: int, end: End) -> Node:
    """Where the k largest (or smallest) magnitudes end among equal ones, which come in flat order.

    ``threshold`` is the k-th of them, a ``kth_magnitude`` of the same node.
    """
    return intern("kth_place", (node, threshold), (), k, end)


def share_magnitude(node: Node, share: Fraction, of: Node) -> Node:
    """The k-th largest absolute value, with k = floor(share * of); infinite where k is 0.

    ``of`` is a reduction of shape (), of no more than the node's elements.
    """
    return intern("kth_magnitude", (node, of), (), share)


def share_place(node: Node, threshold: Node, share: Fraction, of: Node) -> Node:
    """As ``kth_place`` for the largest, with k as in ``share_magnitude``."""
    return intern("kth_place", (node, threshold, of), (), share, "largest")


def derived(function: Callable[..., object], *inputs: Node, arguments: tuple[object, ...]) -> Node:
    """``function(*arguments, *values)`` of numbers that reductions leave, all of one shape.

    Of inputs of shape () the function gets floats and gives one; of row sums it gets lists, a row's
    sum each, and gives such a list. It is a function of a module, not one made on the spot: equal
    nodes are one object.
    """
    shape = inputs[0].shape
    if any(node.shape != shape or node.kind not in ("reduction", "constant") for node in inputs):
        raise ValueError("numbers are derived from reductions of one shape")
    if all(node.op == "constant" for node in inputs) and shape == ():
        value = function(*arguments, *(node.value for node in inputs))
        assert isinstance(value, float)
        return constant(value)
    return intern("derived", inputs, shape, function, *arguments)


def low_rank(node: Node, rank: int) -> Node:
    """The nearest matrix of rank at most ``rank`` in the Frobenius norm (Eckart and Young 1936)."""
    if len(node.shape) != 2 or rank < 1:
        raise ValueError(f"low_rank needs a matrix and a rank of at least 1, not {node.shape}")
    if rank >= min(node.shape):
        return node
    return _whole("low_rank", node, node.shape, rank)


def isotropic(node: Node) -> Node:
    """The matrix with its singular vectors, and for each singular value the mean of all."""
    if len(node.shape) != 2:
        raise ValueError(f"only a matrix has singular values, not a tensor of shape {node.shape}")
    return _whole("isotropic", node, node.shape)


def joint_low_rank(nodes: Sequence[Node]) -> Node:
    """Matrices of one shape merged by their leading singular vectors, orthogonal to each other."""
    shape = nodes[0].shape
    if len(shape) != 2 or any(node.shape != shape for node in nodes):
        raise ValueError(f"only matrices of one shape have joint singular vectors, not {shape}")
    return _whole("joint_low_rank", concat(nodes), shape, len(nodes))


def row_rank(node: Node) -> Node:
    """The place of each magnitude in its row, the last dimension, from 0 on; of equal ones the
    first has the lower place."""
    if not node.shape:
        raise ValueError("a scalar has no rows")
    return _whole("row_rank", node, node.shape)


def _whole(op: str, node: Node, shape: Shape, *attributes: object) -> Node:
    zero = is_constant(node, 0.0) or not node.numel
    return constant(0.0, shape) if zero else intern(op, (node,), shape, *attributes)
