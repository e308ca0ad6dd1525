"""Layers of models put on top of each other: a model that is made of parts of others.

Nothing is copied: its tensors are those of the parts, under the names that they have in the stack.
What stands before the layers (embeddings) is the first part's, what follows them (final norm,
head) the last part's.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.config import LAYER_COUNTS, TEXT
from mergeengine.checkpoints.documents import listing
from mergeengine.errors import CheckpointError
from mergeengine.lazy.weight import Weight, called
from mergeengine.values.anatomy import Anatomy, TensorFacts
from mergeengine.values.references import ModelReference, Slab
from mergeengine.values.selectors import LayerRange

# Of a config, by names alone: lists with an entry for each layer, lists of the numbers of layers,
# and settings that count them.
_PER_LAYER = re.compile(r"layer|block|heads|multipliers|intermediate_size|pattern")
_NUMBERS = ("mlp_only_layers", "moe_layers", "cross_attention_layers", "attn_layer_indices")
_PERIODS = (
    "full_attention_interval", "sliding_window_pattern", "attn_layer_period", "attn_layer_offset",
    "expert_layer_period", "expert_layer_offset", "interleave_moe_layer_step", "moe_layer_freq",
    "first_k_dense_replace", "decoder_sparse_step", "max_window_layers", "no_rope_layer_interval",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer of the stack: that of this number in a part."""

    part: Checkpoint
    prefix: str
    number: int


def stacked(reference: ModelReference, parts: Sequence[Checkpoint]) -> Checkpoint:
    """The model of a stack, whose ``parts`` are those of ``reference.stack``, in this order.

    CheckpointError where a part has no such layers, or not one stack of layers.
    """
    layers: list[_Layer] = []
    for slab, part in zip(reference.stack, parts, strict=True):
        prefix, count = _stack_of(slab, part)
        chosen = slab.layers or (LayerRange(0, None),)
        for span in chosen:
            numbers = [number for number in range(count) if span.holds(number, count)]
            lowest, highest = span.ends(count)
            if not numbers or lowest < 0 or highest >= count:
                raise CheckpointError(
                    f"{slab.model.position}: {part} has the layers 0-{count - 1}, and no {span}"
                )
            layers += [_Layer(part, prefix, number) for number in numbers]
    config, warnings = _config(layers)
    first = parts[0].beside
    return Checkpoint(
        reference=reference,
        tensors=MappingProxyType(_tensors(layers, parts)),
        files=tuple(dict.fromkeys(file for part in parts for file in part.files)),
        config=config,
        folder=first.folder,
        revision=None,
        parts=tuple(dict.fromkeys(parts)),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        warnings=tuple(
            dict.fromkeys((*(text for part in parts for text in part.warnings), *warnings))
        ),
        _store=first._store,
    )


def _stack_of(slab: Slab, part: Checkpoint) -> tuple[str, int]:
    """What stands before a layer's number in the names of a model, and how many layers it has."""
    stacks = Anatomy.of_names(part.tensors).stacks
    if len(stacks) != 1:
        found = f"has several ({listing(stacks, 4)})" if stacks else "has none"
        raise CheckpointError(
            f"{slab.model.position}: {part} {found}: layers are stacked of models that have one "
            "stack of layers"
        )
    return next(iter(stacks.items()))


def _tensors(layers: Sequence[_Layer], parts: Sequence[Checkpoint]) -> dict[str, Weight]:
    prefix = layers[0].prefix
    inside: dict[tuple[Checkpoint, int], list[Weight]] = {}
    before: list[Weight] = []
    after: list[Weight] = []
    for part in dict.fromkeys(parts):
        anatomy = Anatomy.of_names(part.tensors)
        for name, tensor in part.tensors.items():
            facts: TensorFacts = anatomy.tensor(name)
            if facts.layer is not None:
                inside.setdefault((part, facts.layer), []).append(tensor)
            elif facts.stands_before:
                before += [tensor] if part is parts[0] else []
            else:
                after += [tensor] if part is parts[-1] else []
    tensors = {tensor.name: tensor for tensor in before}
    for place, layer in enumerate(layers):
        for tensor in inside.get((layer.part, layer.number), ()):
            rest = tensor.name[len(layer.prefix) + len(str(layer.number)) :]
            name = f"{prefix}{place}{rest}"
            tensors[name] = called(name, tensor)
    tensors.update((tensor.name, tensor) for tensor in after)
    return tensors


def _config(layers: Sequence[_Layer]) -> tuple[Mapping[str, Any] | None, list[str]]:
    """The first part's config, with as many layers, and what it says of single ones in the order
    of the stack."""
    first = layers[0].part
    if first.config is None:
        return None, []
    config = deepcopy(dict(first.config))
    periods: list[str] = []
    for path, section in _sections(config):
        counts = [key for key in LAYER_COUNTS if type(section.get(key)) is int]
        if not counts:
            continue
        own = section[counts[0]]
        for key in counts:
            section[key] = len(layers)
        for key, value in section.items():
            if isinstance(value, list) and key in _NUMBERS:
                section[key] = [
                    place
                    for place, layer in enumerate(layers)
                    if layer.number in _said(layer.part, path, key, value)
                ]
            elif isinstance(value, list) and len(value) == own and _PER_LAYER.search(key):
                section[key] = [
                    _entry(_said(layer.part, path, key, value), layer.number, value)
                    for layer in layers
                ]
        if [layer.number for layer in layers] != list(range(own)):
            periods += [key for key in _PERIODS if section.get(key) is not None]
    warnings = [
        f"config.json of {first} counts layers in {', '.join(periods)}, which may not be true of "
        "the stack: look at the output's config.json"
    ]
    return config, warnings if periods else []


def _sections(config: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    yield (), config
    if isinstance(config.get(TEXT), dict):
        yield (TEXT,), config[TEXT]


def _said(part: Checkpoint, path: Sequence[str], key: str, otherwise: list[Any]) -> list[Any]:
    """The list that a part's own config has there."""
    found: Any = part.config or {}
    for step in (*path, key):
        found = found.get(step) if isinstance(found, Mapping) else None
    return found if isinstance(found, list) else otherwise


def _entry(said: list[Any], number: int, otherwise: list[Any]) -> Any:
    return said[number] if number < len(said) else otherwise[min(number, len(otherwise) - 1)]
