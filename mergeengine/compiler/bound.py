"""What binding decides: each output tensor, what it is made of, and its numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from mergeengine.compiler import mergekit_rounding
from mergeengine.compiler.graph import Graph, OutputTensor, compute_dtype
from mergeengine.compiler.merging import Setting
from mergeengine.lazy.dtypes import FLOAT32, OUTPUT_DTYPES, DType
from mergeengine.lazy.tensor import LazyTensor
from mergeengine.lazy.weight import Weight, node_of
from mergeengine.methods.relative import at_most, to_ratio
from mergeengine.plan.plan import Plan, Source
from mergeengine.values.actions import Applied
from mergeengine.values.anatomy import TensorFacts
from mergeengine.values.decisions import Decision
from mergeengine.values.scaling import Measure

Kind = Literal[
    "merged", "frozen", "kept", "not float", "missing", "mismatch", "unmapped", "copied", "scales"
]


@dataclass(frozen=True, slots=True)
class Delta:
    """One source's part in one tensor. ``coefficient`` is the product of the three decisions, which
    multiplies the delta after ``actions``. ``settings`` are the method's parameters of the source.

    Where the scaling is a ``ratio``, or bounded by ``limit``, it is multiplied by what the norms
    of the tensors give (``weight``), before any action.
    """

    source: Source
    base: Weight
    ft: Weight
    scaling: Decision
    plan_mask: Decision
    source_mask: Decision
    limit: Decision | None = None
    actions: tuple[Applied, ...] = ()
    measure: Measure = "factor"
    settings: tuple[Setting, ...] = ()

    @property
    def coefficient(self) -> float:
        """0: the delta is left out."""
        if self.limit is not None and not self.limit.value:
            return 0.0
        return self.scaling.value * self.plan_mask.value * self.source_mask.value

    def weight(self, target: LazyTensor, difference: LazyTensor) -> float | LazyTensor:
        """What the difference is multiplied by: masks weaken what the norms decide."""
        coefficient = self.coefficient
        if not coefficient or (self.limit is None and self.measure == "factor"):
            return coefficient
        return self.scaled(target, difference) * (self.plan_mask.value * self.source_mask.value)

    def scaled(self, target: LazyTensor, difference: LazyTensor) -> float | LazyTensor:
        """The scaling alone, as the norms decide it where they do."""
        if self.limit is None and self.measure == "factor":
            return self.scaling.value
        if self.limit is None:
            return to_ratio(target, difference, self.scaling.value)
        return at_most(target, difference, self.scaling.value, self.limit.value)


@dataclass(frozen=True, slots=True)
class BoundTensor:
    """One output tensor and what it is made of.

    ``kind``: merged; frozen (every coefficient is 0); kept (a mask takes a fine-tune's); or why it
    is taken as it is: an integer or boolean tensor, one without a delta (``missing``, ``mismatch``,
    or ``unmapped``: its layer is left out by `layer_map`), or one that only the fine-tune has
    (``copied``). ``scales`` are those of a weight that is written in 8 bits. ``origin`` is the
    tensor that is taken or added to. ``settings`` are the parameters of the plan's method.
    """

    output: OutputTensor
    kind: Kind
    origin: Weight
    facts: TensorFacts
    deltas: tuple[Delta, ...] = ()
    settings: tuple[Setting, ...] = ()


@dataclass(frozen=True, slots=True)
class Binding:
    """Every output tensor in the order of the target's files, and what was decided by the way.

    Notes go into the manifest and name no places in the plan; warnings do. ``vocabulary`` counts
    the rows of embedding and head (``per_token``), where vocabularies differ.
    """

    tensors: tuple[BoundTensor, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    vocabulary: Mapping[str, int] = field(default_factory=dict)
    per_token: frozenset[str] = frozenset()

    @property
    def graph(self) -> Graph:
        return Graph(tuple(tensor.output for tensor in self.tensors))

    def counts(self) -> dict[str, int]:
        """How many tensors of each kind, merged first."""
        kinds = [tensor.kind for tensor in self.tensors]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(sorted(kinds, key=_ORDER.index))}


_ORDER = list(get_args(Kind))


def output_of(
    plan: Plan,
    tensor: Weight,
    facts: TensorFacts,
    value: LazyTensor,
    kind: Kind,
    deltas: tuple[Delta, ...],
    origin: Weight | None = None,
    settings: tuple[Setting, ...] = (),
) -> BoundTensor:
    dtype = (plan.output.dtype.at(facts) if tensor.dtype.is_float else None) or tensor.dtype
    working, node = working_dtype(plan, tensor), value.node
    if working is None:
        compute = compute_dtype(dtype, plan.numerics.compute_dtype)
    else:
        compute = mergekit_rounding.compute_dtype(plan.method, working)
        node = mergekit_rounding.rounded(plan.method, node, working)
    target = node_of(tensor) if node.shape == tensor.shape else None
    output = OutputTensor(tensor.name, dtype, compute, node, target)
    return BoundTensor(output, kind, origin or tensor, facts, deltas, settings)


def working_dtype(plan: Plan, tensor: Weight) -> DType | None:
    """To what is rounded on the way, as mergekit does; None where only the result is."""
    if plan.numerics.compatibility is None or not tensor.dtype.is_float:
        return None
    asked = plan.numerics.compute_dtype
    return OUTPUT_DTYPES.get(tensor.dtype.name if asked == "auto" else asked, FLOAT32)
