"""PEFT adapters: the model that comes out when one is put onto its base, as expressions.

    merged = base + scale · B·A                                         LoRA
    merged = magnitude · (base + scale · B·A) / ‖base + scale · B·A‖    DoRA

(Hu et al. 2021, arXiv:2106.09685, section 4.1; Liu et al. 2024, arXiv:2402.09353, equation 5.)
The norm is that of each output's weights. Nothing of a merged model is written or held: B·A is
made block by block, where it is used. What PEFT stores is read under PEFT's names: factors,
magnitudes, biases, modules that were trained as a whole, rows of embeddings.
"""

import re
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from mergeengine.checkpoints.adapter_config import LoraSettings, read_settings
from mergeengine.checkpoints.adapter_names import Names
from mergeengine.checkpoints.aliases import alias_of, is_embedding, is_head
from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.documents import listing, shown
from mergeengine.checkpoints.layouts import spelled
from mergeengine.errors import CheckpointError
from mergeengine.lazy import algebra
from mergeengine.lazy.dtypes import DType
from mergeengine.lazy.nodes import Node, Shape
from mergeengine.lazy.stored import Stored
from mergeengine.lazy.weight import Derived, Weight, node_of

_PREFIX = "base_model.model."
_PARTS = re.compile(
    r"(?P<module>.+?)\.(?:lora_(?P<what>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(?:\.(?P<end>weight|bias))?|token_adapter\.(?P<tokens>trainable_tokens_delta))"
)
_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # store (inputs, outputs)


def adapted(base: Checkpoint, adapter: Checkpoint) -> Checkpoint:
    """The model of an adapter and its base, by their headers.

    CheckpointError where the adapter is none that can be formed exactly, or does not fit the base.
    """
    assert adapter.adapter is not None
    label = f"{adapter}: adapter_config.json"
    made = _Adapted(base, adapter, read_settings(adapter.adapter, label))
    made.collect()
    made.form()
    if made.problems:
        raise CheckpointError(
            f"the adapter {adapter} does not fit {base}:\n  "
            + "\n  ".join(made.problems[:20])
            + (f"\n  and {len(made.problems) - 20} more" if len(made.problems) > 20 else "")
            + "\n  name the model that it was trained on as `base` of the adapter"
            + (f": it says {shown(made.settings.base)}" if made.settings.base else "")
        )
    notes, warnings = _remarks(base, adapter, made.settings)
    warnings += made.warnings
    return Checkpoint(
        reference=replace(adapter.reference, adapts=base.reference),
        tensors=MappingProxyType(made.tensors),
        files=(*adapter.files, *base.files),
        config=base.config,
        revision=adapter.revision,
        parts=(adapter, base),
        notes=notes,
        warnings=warnings,
        _headers={**base._headers, **adapter._headers},
    )


@dataclass(slots=True)
class _Layer:
    """What an adapter stores for one module, by the parts of its names."""

    parts: dict[str, Stored] = field(default_factory=dict)


@dataclass(slots=True)
class _Adapted:
    base: Checkpoint
    adapter: Checkpoint
    settings: LoraSettings
    tensors: dict[str, Weight] = field(init=False)
    layers: dict[str, _Layer] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: tuple[str, ...] = ()
    names: Names = field(init=False)

    def __post_init__(self) -> None:
        self.tensors = dict(self.base.tensors)
        self.names = Names(self.base.tensors)

    def collect(self) -> None:
        """Sort the adapter's tensors by module; those that replace the base's go into place."""
        for tensor in self.adapter.tensors.values():
            if not isinstance(tensor, Stored):  # of a torch file
                raise CheckpointError(
                    f"{self.adapter}: {tensor.name} does not lie in one piece in its file: load "
                    "the adapter with PEFT and save it with save_pretrained"
                )
            name = tensor.name.removeprefix(_PREFIX)
            found = _PARTS.fullmatch(name)
            if found is not None:
                end = ".bias" if found["end"] == "bias" else ""
                part = found["tokens"] or f"{found['what']}{end}"
                self.layers.setdefault(found["module"], _Layer()).parts[part] = tensor
            elif ".lora_" in name or ".token_adapter." in name:
                self.problems.append(f"{shown(tensor.name)} is no part of an adapter that is known")
            else:
                self._replace(re.sub(r"\.(?:base_layer|original_module)\b", "", name), tensor)

    def form(self) -> None:
        """Put every module's change onto the base's weight."""
        sideways = self._sideways()
        for module, layer in self.layers.items():
            parts = dict(layer.parts)
            if (delta := parts.pop("trainable_tokens_delta", None)) is not None:
                self._tokens(module, delta)
            bias, magnitude = parts.pop("B.bias", None), parts.pop("magnitude_vector", None)
            if parts.keys() == {"A", "B"}:
                self._linear(module, parts["A"], parts["B"], magnitude, bias, sideways)
            elif parts.keys() == {"embedding_A", "embedding_B"}:
                one, two = parts["embedding_A"], parts["embedding_B"]
                self._linear(module, one, two, magnitude, bias, sideways=True)
            elif parts or bias or magnitude:
                there = listing(sorted(each.name for each in layer.parts.values()))
                self.problems.append(f"{module} has not both factors: found {there}")
        self._carry_to_tied()

    def _replace(self, name: str, tensor: Stored) -> None:
        found = self.names.find(name) or name
        old = self.tensors.get(found)
        rows_may_differ = is_embedding(found) or is_head(found)
        if old is not None and old.shape[rows_may_differ:] != tensor.shape[rows_may_differ:]:
            self.problems.append(
                f"{found}: {list(tensor.shape)} in the adapter, {list(old.shape)} in the base"
            )
            return
        self._put(found, (old or tensor).dtype, algebra.stored(tensor))

    def _put(self, name: str, dtype: DType, node: Node, added: str | None = None) -> None:
        self.tensors[name] = Derived(str(self.adapter), name, dtype, node, added)

    def _sideways(self) -> bool:
        """Whether weights are stored as (inputs, outputs), as Conv1D of GPT-2 has them.

        What PEFT writes as fan_in_fan_out is that of the last module which it wrapped, so the
        shapes are asked first, and it only where all weights are square.
        """
        for module, layer in self.layers.items():
            weight = self._weight(f"{module}.weight")
            if {"A", "B"} <= layer.parts.keys() and weight is not None and not is_head(weight.name):
                inputs, outputs = layer.parts["A"].shape[-1], layer.parts["B"].shape[0]
                if inputs != outputs and len(weight.shape) == 2:
                    return weight.shape == (inputs, outputs)
        kind = (self.base.config or {}).get("model_type")
        return self.settings.transposed or kind in _CONV1D

    def _weight(self, name: str) -> Weight | None:
        """The base's tensor of that name, or what replaced it."""
        found = self.names.find(name) or name
        return self.tensors.get(found)

    def _linear(
        self,
        module: str,
        one: Stored,
        two: Stored,
        magnitude: Stored | None,
        bias: Stored | None,
        sideways: bool,
    ) -> None:
        if len(one.shape) != 2 or len(two.shape) != 2 or not _all_float(one, two, magnitude, bias):
            self.problems.append(
                f"{module}: factors of shapes {list(one.shape)} and {list(two.shape)} in "
                f"{one.dtype}: adapters of convolutions and of other kinds are not formed"
            )
            return
        weight = self._weight(f"{module}.weight") or self._tied(module, one, two)
        if weight is None:
            self._parameter(re.sub(r"(?:\.base_layer)+$", "", module), one, two)
            return
        rank, scale = self.settings.rank_of(module), self.settings.scale_of(module)
        made = (two.shape[0], one.shape[1])
        if not (rank == one.shape[0] == two.shape[1]):
            self._misfit(module, one, two, f"adapter_config.json says rank {rank}")
            return
        if made[0] != made[1]:  # else the shapes do not tell
            sideways = weight.shape != made
        if weight.shape != (made[::-1] if sideways else made):
            self._misfit(module, one, two, f"{weight.name} is {list(weight.shape)} in the base")
            return
        product = algebra.product(algebra.stored(two), algebra.stored(one))
        product = algebra.permute(product, (1, 0)) if sideways else product
        added = algebra.elementwise("mul", algebra.constant(scale), product)
        if self.settings.dora != (magnitude is not None):
            self.problems.append(f"{module}: use_dora and lora_magnitude_vector do not agree")
        elif magnitude is not None and magnitude.numel != made[0]:
            self._misfit(module, one, two, f"its magnitudes are {list(magnitude.shape)}")
        elif magnitude is None:
            self._add(weight, added, f"{scale:.6g} · B·A")
        else:
            node = _dora(node_of(weight), added, magnitude, made[0], sideways)
            self._put(weight.name, weight.dtype, node)
        if bias is not None:
            own = self._weight(f"{module}.bias")
            if own is None or own.shape != bias.shape:
                self.problems.append(f"{module}: there is no bias in the base for lora_B.bias")
                return
            factor = algebra.constant(scale)
            added = algebra.elementwise("mul", factor, algebra.stored(bias))
            self._add(own, added, f"{scale:.6g} · bias of B")

    def _add(self, weight: Weight, added: Node, text: str) -> None:
        node = algebra.elementwise("add", node_of(weight), added)
        self._put(weight.name, weight.dtype, node, text)

    def _tied(self, module: str, one: Stored, two: Stored) -> Weight | None:
        """A head that the base does not store, since it is its embedding."""
        name = f"{module}.weight"
        alias = alias_of(self.base, name, (two.shape[0], one.shape[1]))
        if alias is None:
            return None
        kept = self.base.tensors[alias]
        return Derived(kept.source, name, kept.dtype, node_of(kept))

    def _parameter(self, module: str, one: Stored, two: Stored) -> None:
        """A stack of experts' matrices, which is a parameter of its module (target_parameters).

        Its factors hold those of all experts: A of expert e is rows e·r to (e+1)·r, and B of it
        every E-th column from e on. The base may have each expert in tensors of its own.
        """
        fitting = []
        for parameter in sorted({path.rpartition(".")[2] for path in self.settings.parameters}):
            name = f"{module}.{parameter}"
            weight = self._weight(name)
            stack = self._experts(module, parameter) if weight is None else [[weight]]
            if weight is None and stack:
                rows = sum(part.shape[0] for part in stack[0])
                shape: Shape = (len(stack), rows, stack[0][0].shape[-1])
            elif weight is not None and len(weight.shape) == 3:
                shape = weight.shape
            else:
                continue
            made, rank = (two.shape[0], one.shape[1]), self.settings.rank_of(name)
            if one.shape[0] == two.shape[1] == rank * shape[0] and (
                shape[1:] in (made, made[::-1])
            ):
                fitting.append((stack, shape, rank, self.settings.scale_of(name)))
        if len(fitting) != 1 or two.shape[0] == one.shape[1]:
            many = "several ways to put it onto the base fit" if fitting else ""
            self.problems.append(
                f"{module}: {many or 'no such weight is there'} (B·A of {list(two.shape)} and "
                f"{list(one.shape)})"
            )
            return
        stack, shape, rank, scale = fitting[0]
        left = algebra.stored(replace(two, shape=(two.shape[0], rank, shape[0])))
        right = algebra.stored(replace(one, shape=(shape[0], rank, one.shape[1])))
        product = algebra.product(algebra.permute(left, (2, 0, 1)), right)
        if product.shape != shape:
            product = algebra.permute(product, (0, 2, 1))
        added = algebra.elementwise("mul", algebra.constant(scale), product)
        text = f"{scale:.6g} · B·A"
        if len(stack[0][0].shape) == 3:
            self._add(stack[0][0], added, text)
            return
        for number, parts in enumerate(stack):
            row = 0
            for part in parts:
                box = ((number, number + 1), (row, row + part.shape[0]), (0, shape[2]))
                self._add(part, algebra.squeeze(algebra.slice_box(added, box)), text)
                row += part.shape[0]

    def _experts(self, module: str, parameter: str) -> list[list[Weight]]:
        """What each expert has of a stack, in tensors of its own; none where that is unclear."""
        parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
        found: list[list[Weight]] = []
        while parameter in parts:
            stem = spelled(f"{module}.{len(found)}")
            own = [self.names.respelled(f"{stem}.{part}.weight") for part in parts[parameter]]
            if None in own:
                break
            found.append([self.tensors[name] for name in own if name is not None])
        return found if len({tuple(w.shape for w in each) for each in found}) == 1 else []

    def _tokens(self, module: str, delta: Stored) -> None:
        """Rows of an embedding in place of the base's; PEFT calls what it stores a delta, but
        stores the rows themselves."""
        weight = self._weight(f"{module}.weight")
        rows = next(
            (
                rows
                for key, rows in self.settings.tokens.items()
                if not key or module == key or module.endswith(f".{key}")
            ),
            (),
        )
        if weight is None or delta.shape != (len(rows), *weight.shape[1:]):
            self.problems.append(
                f"{module}: {len(rows)} rows of tokens are named, those stored are "
                f"{list(delta.shape)}"
            )
            return
        if any(row >= weight.shape[0] for row in rows):
            self.problems.append(f"{module}: token {max(rows)} of {weight.shape[0]}")
            return
        places = {row: place for place, row in enumerate(rows)}
        taken = algebra.take(
            algebra.stored(delta), [places.get(row, -1) for row in range(weight.shape[0])]
        )
        chosen = algebra.rows([(row, row) for row in sorted(rows)], weight.shape)
        node = algebra.elementwise("where", chosen, taken, node_of(weight))
        self._put(weight.name, weight.dtype, node)

    def _carry_to_tied(self) -> None:
        """A tied head that the base stores all the same is what its embedding becomes."""
        if (self.base.config or {}).get("tie_word_embeddings") is not True:
            return
        if any("embedding_A" in layer.parts for layer in self.layers.values()):
            self.warnings += (
                f"{self.adapter}: the adapter changes an embedding that the base's head is tied "
                "to: as when PEFT merges it, the head changes with it, unlike in training",
            )
        for name, old in self.base.tensors.items():
            if not is_head(name) or self.tensors[name] is not old:
                continue
            other = alias_of(self.base, name, old.shape)
            new = old if other is None else self.tensors[other]
            if other is not None and new is not self.base.tensors[other]:
                assert isinstance(new, Derived)
                self.tensors[name] = replace(new, name=name)

    def _misfit(self, module: str, one: Stored, two: Stored, what: str) -> None:
        self.problems.append(
            f"{module}: {what}, the adapter's B·A is {list(two.shape)} · {list(one.shape)}"
        )


def _all_float(*tensors: Stored | None) -> bool:
    return all(tensor is None or tensor.dtype.is_float for tensor in tensors)


def _dora(weight: Node, added: Node, magnitude: Stored, outputs: int, sideways: bool) -> Node:
    total = algebra.elementwise("add", weight, added)
    rows = algebra.permute(total, (1, 0)) if sideways else total
    squares = algebra.row_sum(algebra.elementwise("mul", rows, rows))
    length = algebra.elementwise("sqrt", squares)
    wanted = algebra.stored(replace(magnitude, shape=(outputs, 1)))
    factor = algebra.elementwise("div", wanted, length)
    factor = algebra.permute(factor, (1, 0)) if sideways else factor
    return algebra.elementwise("mul", factor, total)


def _remarks(
    base: Checkpoint, adapter: Checkpoint, settings: LoraSettings
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Notes and warnings: whether the adapter says that it was trained on this base."""
    notes, warnings = [], []
    told, here = settings.base, base.reference
    if told is not None:
        names = [here.repo or "", here.path.name if here.path else ""]
        same_end = _last(told) in map(_last, names)
        revision = f" at revision {settings.revision}" if settings.revision else ""
        text = (
            f"{adapter}: the adapter says that it was trained on {shown(told)}{revision}; its base "
            f"here is {here}"
        )
        if here.repo is not None and told.casefold() != here.repo.casefold():
            warnings.append(text)
        elif not same_end or (revision and settings.revision not in (here.revision, base.revision)):
            notes.append(text)
    if settings.changed_base is not None:
        warnings.append(
            f"{adapter}: the adapter began as {shown(settings.changed_base)}, which takes its "
            "first B·A out of the base: its base must be the model that was saved with that taken "
            "out, not the original"
        )
    return tuple(notes), tuple(warnings)


def _last(name: str) -> str:
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1].casefold()
