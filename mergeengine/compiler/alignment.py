"""Models whose vocabularies differ, seen with the rows of the output.

Every tensor that has an entry for each token (embeddings, heads, their biases) becomes an
expression over what is stored, of the output's rows; what binds models need not know of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from itertools import groupby
from types import MappingProxyType

from mergeengine.checkpoints.aliases import alias_of, is_embedding
from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.token_rows import token_dimension, vocabulary_rows
from mergeengine.compiler.arrangement import Arrangement, Places
from mergeengine.compiler.correspondence import Counterparts
from mergeengine.compiler.vocabulary import arrange
from mergeengine.lazy import algebra
from mergeengine.lazy.nodes import Node, Shape
from mergeengine.lazy.weight import Derived, Weight, node_of
from mergeengine.plan.plan import Plan, Source

Triple = tuple[Source, Checkpoint, Checkpoint]

MOST_RUNS = 64  # of rows that are read as slices; more are gathered by their indices


@dataclass(frozen=True, slots=True)
class Aligned:
    """The models of a merge, with one vocabulary.

    In ``sources`` base and fine-tune have rows of zeros where there is no delta. By the aligned
    model: ``stored`` are the models as they are, ``complete`` the fine-tunes with all of their rows
    (and what stands in where they have none); by the source's name, ``compared`` is the target with
    zeros where the base has them. ``per_token`` names what was changed of the target.
    """

    target: Checkpoint
    sources: tuple[Triple, ...]
    stored: Mapping[Checkpoint, Checkpoint] = field(default_factory=dict)
    complete: Mapping[Checkpoint, Checkpoint] = field(default_factory=dict)
    compared: Mapping[str, Checkpoint] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    per_token: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def whole(self, ft: Checkpoint, tensor: Weight) -> Weight:
        """A fine-tune's tensor with all of its rows."""
        if ft.tensors.get(tensor.name) is not tensor or ft not in self.complete:
            return tensor
        return self.complete[ft].tensors[tensor.name]

    def beside(self, source: Source, tensor: Weight) -> Weight:
        """The target's tensor where the source's base is to be compared with it."""
        return self.compared.get(source.name, self.target).tensors.get(tensor.name, tensor)


def align(
    plan: Plan,
    target: Checkpoint,
    sources: Sequence[Triple],
    tokenizer: Checkpoint | None = None,
) -> Aligned:
    """The models with the rows of the output; as they are where vocabularies do not differ."""
    bases, fts = [base for _, base, _ in sources], [ft for _, _, ft in sources]
    rows = arrange(plan, target, bases, fts, tokenizer)
    if rows is None:
        return Aligned(target, tuple(sources))
    names = [_names(target, source, ft) for source, _, ft in sources]
    called: dict[Checkpoint, Mapping[str, str]] = {target: {}}
    for (_, _, ft), of_target in zip(sources, names, strict=True):
        called.setdefault(ft, of_target)
    others: list[Part] = [(model, places, called[model]) for model, places in rows.others.items()]
    seen = _seen(target, rows, (target, rows.target, {}), others)
    aligned, stored, complete, compared = [], {}, {}, {}
    for number, (source, base, ft) in enumerate(sources):
        of_ft = {
            there: here
            for here, there in names[number].items()
            if is_embedding(here) == is_embedding(there)  # not a head that is tied
        }
        as_in_ft: list[Part] = [
            (model, places, {n: of_model.get(of_ft.get(n, n), of_ft.get(n, n)) for n in ft.tensors})
            for model, places, of_model in others
        ]
        instead = as_in_ft if source.whole else None
        after = _seen(ft, rows, (ft, rows.after[number], {}), instead)
        before = seen if source.whole else _seen(base, rows, (base, rows.before[number], {}), None)
        aligned.append((source, before, after))
        stored[after] = ft
        complete[after] = _seen(ft, rows, (ft, rows.own[number], {}), as_in_ft)
        has = tuple(
            row if b >= 0 else -1 for row, b in zip(rows.target, rows.before[number], strict=True)
        )
        shared: Part = (target, has, {})
        compared[source.name] = seen if source.whole else _seen(target, rows, shared, None)
    return Aligned(
        seen,
        tuple(aligned),
        stored,
        complete,
        compared,
        rows.counts,
        frozenset(n for n, tensor in seen.tensors.items() if tensor is not target.tensors[n]),
        rows.notes,
        rows.warnings,
    )


Part = tuple[Checkpoint, Places, Mapping[str, str]]
"""A model, its rows, and how tensors are called in it (others have the same name)."""


def _names(target: Checkpoint, source: Source, ft: Checkpoint) -> dict[str, str]:
    """What the target's vocabulary tensors are called in a fine-tune."""
    rows = vocabulary_rows(target)
    assert rows is not None
    matched = Counterparts(target, ft, "source_ft", source.renames, source.layer_map)
    names = {}
    for name, tensor in target.tensors.items():
        if token_dimension(name, tensor.shape, rows) is not None:
            found = matched.find(tensor)
            names[name] = found.name if found is not None else name
    return names


def _seen(
    model: Checkpoint, rows: Arrangement, own: Part, others: Sequence[Part] | None
) -> Checkpoint:
    """A model whose vocabulary tensors have the output's rows: its own, and in the place of those
    that it lacks the mean of the others', or zeros. Without ``others`` it is part of a delta, and
    all rows that are not its own are zeros."""
    means = 0 if others is None else rows.means
    height = vocabulary_rows(model)
    tensors: dict[str, Weight] = dict(model.tensors)
    for name, tensor in model.tensors.items():
        dimension = None if height is None else token_dimension(name, tensor.shape, height)
        if dimension is None or not tensor.dtype.is_float:
            continue
        shape = _resized(tensor.shape, dimension, rows.size - means)
        mine, *rest = (_rows_of(part, name, shape, dimension) for part in (own, *(others or ())))
        node = _picked(mine, [each for each in rest if each is not None], shape, dimension)
        node = _with_means(node, means, dimension)
        tensors[name] = Derived(str(model), name, tensor.dtype, node)
    return replace(model, tensors=MappingProxyType(tensors))


Rows = tuple[Node, Places]


def _rows_of(part: Part, name: str, shape: Shape, dimension: int) -> Rows | None:
    model, places, called = part
    node = _node(model, called.get(name, name), shape, dimension)
    return None if node is None else (node, places[: shape[dimension]])


def _resized(shape: Shape, dimension: int, size: int) -> Shape:
    return (*shape[:dimension], size, *shape[dimension + 1 :])


def _node(model: Checkpoint, name: str, shape: Shape, dimension: int) -> Node | None:
    """A model's tensor of that name, or the one it is tied to, apart from rows of that shape."""
    rows = vocabulary_rows(model)
    assert rows is not None
    there = _resized(shape, dimension, rows)
    found = model.tensors.get(name)
    if found is None:
        alias = alias_of(model, name, there)
        found = model.tensors[alias] if alias is not None else None
    return node_of(found) if found is not None and found.shape == there else None


def _picked(own: Rows | None, others: Sequence[Rows], shape: Shape, dimension: int) -> Node:
    """The rows of several tensors as one: a tensor's own, else the mean of the others'."""
    size = shape[dimension]
    parts = [own or (algebra.constant(0.0, shape), (-1,) * size), *others]
    # The parts of each row, as bits; those of one row alone are no mean.
    chosen = [0] * size
    for part, (_, places) in enumerate(parts):
        bit = 1 << part
        chosen = [
            c | bit if row >= 0 and c != 1 else c for c, row in zip(chosen, places, strict=True)
        ]
    segments = [(bits, len(list(group))) for bits, group in groupby(chosen)]
    if len(segments) > MOST_RUNS:
        total = algebra.constant(0.0, shape)
        for count in sorted({bits.bit_count() for bits in chosen} - {0}):
            terms = []
            for part, (node, places) in enumerate(parts):
                rows = tuple(
                    row if bits >> part & 1 and bits.bit_count() == count else -1
                    for row, bits in zip(places, chosen, strict=True)
                )
                if max(rows) >= 0:
                    terms.append(_rows(node, rows, dimension))
            total = algebra.elementwise("add", total, _mean(terms, count))
        return total
    pieces, start = [], 0
    for bits, length in segments:
        terms = [
            _rows(node, places if length == size else places[start : start + length], dimension)
            for part, (node, places) in enumerate(parts)
            if bits >> part & 1
        ]
        zeros = algebra.constant(0.0, _resized(shape, dimension, length))
        pieces.append(_mean(terms, len(terms)) if terms else zeros)
        start += length
    return algebra.concat(pieces, dimension)


def _with_means(node: Node, count: int, dimension: int) -> Node:
    """So many rows more, each the mean of all (Hewitt 2021, "Initializing new word embeddings for
    pretrained language models")."""
    size, more = node.shape[dimension], _resized(node.shape, dimension, count)
    if not count or not size:
        return node
    if len(node.shape) == 1:
        total = algebra.elementwise("add", algebra.constant(0.0, more), algebra.total(node))
    else:
        sums = algebra.row_sum(node) if dimension else algebra.column_sum(node)
        factors = [count if d == dimension else 1 for d in range(len(more))]
        total = algebra.repeat(sums, factors, more)
    return algebra.concat([node, _mean([total], size)], dimension)


def _mean(terms: Sequence[Node], count: int) -> Node:
    total = reduce(partial(algebra.elementwise, "add"), terms)
    return algebra.elementwise("div", total, algebra.constant(float(count)))


def _rows(node: Node, places: Places, dimension: int) -> Node:
    """Rows of one tensor: slices where they come in few runs."""
    runs: list[tuple[int, int]] = []  # first row (-1: zeros) and length
    expected = -2
    for row in places:
        if row == expected:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        elif len(runs) == MOST_RUNS:
            return algebra.take(node, places, dimension)
        else:
            runs.append((row, 1))
        expected = row + 1 if row >= 0 else -1
    pieces = []
    for first, length in runs:
        box = [(0, size) for size in node.shape]
        box[dimension] = (first, first + length)
        pieces.append(
            algebra.constant(0.0, _resized(node.shape, dimension, length))
            if first < 0
            else algebra.slice_box(node, tuple(box))
        )
    return algebra.concat(pieces, dimension)
