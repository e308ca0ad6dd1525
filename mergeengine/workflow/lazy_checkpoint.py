"""Arithmetic on whole checkpoints: ``(target + 0.8 * (ft - base)).save("./merged")``.

Nothing is read until a result is saved or iterated. The leftmost checkpoint of an expression is
its *origin*: names, dtypes, integer tensors and config are its own.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Union

from mergeengine.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mergeengine.checkpoints.quantised import quantised
from mergeengine.compiler.correspondence import Counterparts
from mergeengine.compiler.graph import Graph, OutputTensor, compute_dtype
from mergeengine.compiler.schedule import Schedule, schedule
from mergeengine.errors import CheckpointError
from mergeengine.lazy.dtypes import OUTPUT_DTYPES, DType
from mergeengine.lazy.tensor import LazyTensor
from mergeengine.lazy.weight import Derived, node_of
from mergeengine.output.companions import gather_companions
from mergeengine.output.layout import lay_out
from mergeengine.output.manifest import Model
from mergeengine.plan.plan import DEFAULT_SHARD_SIZE, Plan
from mergeengine.values.decisions import number_text
from mergeengine.values.digests import digest_of
from mergeengine.values.references import ModelReference
from mergeengine.workflow.accompany import node_digests, own_head, place_of
from mergeengine.workflow.existing import check_apart
from mergeengine.workflow.measure import Meter
from mergeengine.workflow.prepare import RESULT_VERSION, bind_models, resolve
from mergeengine.workflow.produce import Job, Progress, produce
from mergeengine.workflow.reading import load_plan
from mergeengine.workflow.settings import Settings

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

Operand = Union["LazyCheckpoint", float, int]


@dataclass(frozen=True, slots=True)
class Block:
    """Elements ``start : start + len(values)`` of a tensor's row-major order.

    ``values`` is flat, in the output's dtype, in host memory, and valid until the next block.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    values: "torch.Tensor"


class LazyCheckpoint(Mapping[str, LazyTensor]):
    """Tensor names to lazy tensors, with the arithmetic of the whole.

    Operators take another LazyCheckpoint, which must have every float tensor of this one in the
    same shape (CheckpointError lists what is missing; tied weights are found), or a number.
    """

    def __init__(
        self,
        origin: Checkpoint,
        tensors: Mapping[str, LazyTensor],
        dtypes: Mapping[str, DType],
        inputs: tuple[Checkpoint, ...],
        formula: str,
        compute: Mapping[str, DType] | None = None,
    ) -> None:
        self.origin = origin
        self.inputs = inputs
        self.formula = formula
        self._tensors = dict(tensors)
        self._dtypes = dict(dtypes)
        self._compute = dict(compute or {})

    def __getitem__(self, name: str) -> LazyTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"<LazyCheckpoint {self.formula}: {len(self)} tensors>"

    def dtype(self, name: str) -> str:
        """The dtype in which a tensor will be written, as torch names it."""
        return self._dtypes[name].name

    def __add__(self, other: Operand) -> "LazyCheckpoint":
        return self._combined(other, "+", lambda a, b: a + b)

    def __radd__(self, other: float) -> "LazyCheckpoint":
        return self._combined(other, "+", lambda a, b: b + a, swapped=True)

    def __sub__(self, other: Operand) -> "LazyCheckpoint":
        return self._combined(other, "−", lambda a, b: a - b)

    def __rsub__(self, other: float) -> "LazyCheckpoint":
        return self._combined(other, "−", lambda a, b: b - a, swapped=True)

    def __mul__(self, other: Operand) -> "LazyCheckpoint":
        return self._combined(other, "·", lambda a, b: a * b)

    def __rmul__(self, other: float) -> "LazyCheckpoint":
        return self._combined(other, "·", lambda a, b: b * a, swapped=True)

    def __truediv__(self, other: Operand) -> "LazyCheckpoint":
        return self._combined(other, "/", lambda a, b: a / b)

    def __neg__(self) -> "LazyCheckpoint":
        return -1.0 * self

    def map(self, function: Callable[[str, LazyTensor], LazyTensor]) -> "LazyCheckpoint":
        """Each float tensor replaced by ``function(name, tensor)``, which must keep its shape."""
        tensors = dict(self._tensors)
        for name, tensor in self._floats():
            tensors[name] = function(name, tensor)
            if tensors[name].shape != tensor.shape:
                raise ValueError(f"{name}: shape {tensor.shape} became {tensors[name].shape}")
        return self._with(tensors, f"map({self.formula})")

    def astype(self, dtype: str) -> "LazyCheckpoint":
        """The same, written in ``dtype`` (bfloat16, float16, float32, float64)."""
        if dtype not in OUTPUT_DTYPES:
            raise ValueError(f"no output dtype {dtype!r}: write one of {', '.join(OUTPUT_DTYPES)}")
        result = self._with(self._tensors, f"{dtype}({self.formula})")
        result._dtypes.update((name, OUTPUT_DTYPES[dtype]) for name, _ in self._floats())
        return result

    def blocks(self, *, memory: int | None = None) -> Iterator[Block]:
        """Every tensor block by block, computed as it is asked for, in bounded memory.

        A hub model's weights are fetched first. ``memory`` is in bytes, as for ``run``.
        """
        from mergeengine.execution.executor import stream
        from mergeengine.execution.reader import Reader

        self._fetch()
        plan = self._schedule(Settings(memory=memory, workers=1))
        with Reader(plan.transfers) as reader:
            for tensor, start, values in stream(plan, reader):
                output = tensor.destinations[0].output
                yield Block(output.name, output.shape, start, values)

    def tensors(self, *, memory: int | None = None) -> Iterator[tuple[str, "torch.Tensor"]]:
        """Name and value of every tensor, one whole tensor at a time."""
        import torch

        whole: torch.Tensor | None = None
        for block in self.blocks(memory=memory):
            if whole is None:
                size = self._tensors[block.name].node.numel
                whole = torch.empty(size, dtype=block.values.dtype)
            end = block.start + block.values.numel()
            whole[block.start : end] = block.values
            if end == whole.numel():
                yield block.name, whole.view(block.shape)
                whole = None

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        tokenizer: "LazyCheckpoint | None" = None,
        shard_size: int = DEFAULT_SHARD_SIZE,
        device: str = "auto",
        memory: int | None = None,
        workers: int | None = None,
        device_memory: int | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ) -> Path:
        """Write the checkpoint as ``run`` writes a plan's: resumable, sealed, whole or not at all.

        Config comes from the origin; tokenizer files and generation config from the origin of
        ``tokenizer`` where it is given. Nothing is done where the output is up to date; one that
        another formula made is only replaced with ``force``. Warnings go to ``logging``.
        """
        output = Path(path).absolute()
        settings = Settings(
            device=device, memory=memory, workers=workers, device_memory=device_memory
        )
        check_apart(output, self.inputs)
        donor = tokenizer.origin if tokenizer is not None else self.origin
        with Meter() as meter:
            graph = self._graph()
            described = [(tensor.name, tensor.dtype, tensor.shape) for tensor in graph.tensors]
            pins = {model.reference.text: model.fingerprint() for model in self.inputs}
            companions = gather_companions(
                target=self.origin,
                tokenizer=donor,
                config=self.origin,
                generation_config=donor,
                tensors={name: (dtype, shape) for name, dtype, shape in described},
                own_head=own_head(graph),
            )
            for text in companions.warnings:
                _log.warning("%s", text)
            beside = {file.name: file.digest() for file in companions.files}
            job = Job(
                name=f"save {self.formula}",
                output=output,
                identity=digest_of([RESULT_VERSION, graph_digest(graph, pins), beside]),
                graph=graph,
                layout=lay_out(described, shard_size),
                inputs=self.inputs,
                files=graph.files(),
                companions=companions,
                plan={"name": f"save {self.formula}", "formula": self.formula},
                models=tuple(Model("input", text, pins[text]) for text in sorted(pins)),
                decisions={},
                on_nonfinite="allow",
            )
            (produced,), _ = produce(
                [job],
                lambda _: self._schedule(settings),
                meter,
                settings,
                force=force,
                progress=progress,
            )
            for text in produced.warnings:
                _log.warning("%s", text)
        return output

    def _floats(self) -> Iterator[tuple[str, LazyTensor]]:
        return ((n, t) for n, t in self._tensors.items() if self._dtypes[n].is_float)

    def _combined(
        self,
        other: Operand,
        sign: str,
        operation: Callable[[LazyTensor, LazyTensor | float], LazyTensor],
        *,
        swapped: bool = False,
    ) -> "LazyCheckpoint":
        if not isinstance(other, LazyCheckpoint | float | int):
            return NotImplemented
        right: Mapping[str, LazyTensor | float]
        if isinstance(other, LazyCheckpoint):
            right, inputs, text = self._matched(other), other.inputs, other.formula
        else:
            number = float(other)
            right, inputs, text = {n: number for n, _ in self._floats()}, (), number_text(number)
        tensors = dict(self._tensors)
        for name, tensor in self._floats():
            tensors[name] = operation(tensor, right[name])
        texts = (text, self.formula) if swapped else (self.formula, text)
        formula = f"({texts[0]} {sign} {texts[1]})"
        return self._with(tensors, formula, inputs)

    def _matched(self, other: "LazyCheckpoint") -> dict[str, LazyTensor]:
        """The other's tensor for each float tensor of this one."""
        matched, missing = {}, []
        counterparts = Counterparts(self._as_model(), other._as_model(), "source_ft")
        for name, tensor in self._floats():
            found = other._tensors.get(name)
            if found is None:
                weight = counterparts.find(counterparts.target.tensors[name])
                found = None if weight is None else LazyTensor(node_of(weight))
            if found is None:
                missing.append(f"    {name}: missing")
            elif found.shape != tensor.shape:
                shapes = f"{list(tensor.shape)} and {list(found.shape)}"
                missing.append(f"    {name}: shapes {shapes}")
            else:
                matched[name] = found
        if missing:
            raise CheckpointError(
                f"{other.formula} does not fit {self.formula}:\n" + "\n".join(missing)
            )
        return matched

    def _as_model(self) -> Checkpoint:
        """The origin with these tensors in the place of its own."""
        tensors = {
            name: Derived(self.formula, name, self._dtypes[name], tensor.node)
            for name, tensor in self._tensors.items()
        }
        return replace(self.origin, tensors=tensors)

    def _with(
        self, tensors: Mapping[str, LazyTensor], formula: str, more: tuple[Checkpoint, ...] = ()
    ) -> "LazyCheckpoint":
        inputs = tuple(dict.fromkeys((*self.inputs, *more)))
        return LazyCheckpoint(self.origin, tensors, self._dtypes, inputs, formula, self._compute)

    def _graph(self) -> Graph:
        return Graph(
            tuple(
                OutputTensor(
                    name,
                    dtype,
                    self._compute.get(name) or compute_dtype(dtype),
                    self._tensors[name].node,
                )
                for name, dtype in self._dtypes.items()
            )
        )

    def _schedule(self, settings: Settings) -> Schedule:
        return schedule(self._graph(), memory=settings.memory_budget, workers=settings.worker_count)

    def _fetch(self) -> None:
        files = self._graph().files()
        for model in self.inputs:
            model.fetch(model.missing_files(files))


def open_lazily(
    reference: str | os.PathLike[str] | ModelReference, *, offline: bool = False
) -> LazyCheckpoint:
    """Open a model (``./folder``, ``./file.safetensors``, ``org/name@revision``) for arithmetic."""
    if not isinstance(reference, str | ModelReference):
        reference = ModelReference(os.fspath(reference), path=Path(reference))
    checkpoint = open_checkpoint(reference, offline=offline)
    problem = quantised(checkpoint.config)
    if problem is not None:
        raise CheckpointError(f"{checkpoint}: {problem}")
    return LazyCheckpoint(
        checkpoint,
        {name: LazyTensor(node_of(t)) for name, t in checkpoint.tensors.items()},
        {name: tensor.dtype for name, tensor in checkpoint.tensors.items()},
        (checkpoint,),
        str(checkpoint),
    )


def compile_plan(plan: Plan | str | os.PathLike[str], *, offline: bool = False) -> LazyCheckpoint:
    """The tensors of a plan's result as a lazy checkpoint: to look at, iterate, or compute with.

    What lies beside them (tokenizer, card, ...) is what ``run`` makes.
    """
    if not isinstance(plan, Plan):
        plan = load_plan(plan)
    models, _ = resolve(plan, Settings(offline=offline))
    bound = bind_models(plan, models)
    outputs = [tensor.output for tensor in bound.binding.tensors]
    return LazyCheckpoint(
        models.target,
        {output.name: LazyTensor(output.node) for output in outputs},
        {output.name: output.dtype for output in outputs},
        models.inputs(),
        plan.name,
        {output.name: output.compute for output in outputs},
    )


def graph_digest(graph: Graph, pins: Mapping[str, str]) -> str:
    """A digest of what a graph computes, from which inputs, whatever their paths."""
    roots = [tensor.node for tensor in graph.tensors]
    digests = node_digests(roots, lambda held: [pins[held.source], *place_of(held)])
    return digest_of([[t.name, t.dtype.name, digests[t.node]] for t in graph.tensors])
