"""config.json of the output: the chosen model's, key for key, corrected where it became untrue."""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.token_rows import embedding_rows, vocabulary_rows
from mergeengine.errors import CheckpointError
from mergeengine.lazy.dtypes import OUTPUT_DTYPES, DType
from mergeengine.output.companion_files import Companion, CompanionSet, json_bytes
from mergeengine.output.token_ids import OutputVocabulary, correct_ids

CONFIG = "config.json"
TIE = "tie_word_embeddings"
OutputTensors = Mapping[str, tuple[DType, tuple[int, ...]]]

_DTYPE_KEYS = ("dtype", "torch_dtype")


def choose_config(
    chosen: Checkpoint,
    tensors: OutputTensors,
    own_head: str | None,
    vocabulary: OutputVocabulary,
    *,
    quantised: bool = False,
) -> tuple[dict[str, Any] | None, CompanionSet]:
    """The corrected config.json, as data (None: there is none) and as the file, and what was
    corrected. ``vocabulary`` is what ids of tokens must fit.

    ``own_head`` names an output head whose values differ from the embedding it would be tied to.
    What it says of quantised weights stays only where they are written ``quantised``.
    """
    model = chosen.reference.text
    if chosen.config is None:
        return None, CompanionSet(notes=(f"{model} has no {CONFIG}: none is written",))
    try:
        config = copy.deepcopy(dict(chosen.config))
        notes = [
            f"{CONFIG} of {model}",
            *(() if quantised else _without_quantisation(config)),
            *_correct_dtype(config, tensors),
            *_correct_vocabulary(config, chosen, tensors),
            *_correct_tie(config, chosen, own_head),
            *correct_ids(config, CONFIG, chosen, vocabulary),
        ]
        for part in _parts(config):
            part.pop("_name_or_path", None)
        file = Companion(CONFIG, json_bytes(config))
    except RecursionError:
        raise CheckpointError(f"{model}: {CONFIG} is nested too deeply to be usable") from None
    warnings = []
    if not config.get("architectures"):
        warnings.append(
            f"{CONFIG} of {model} names no architectures: tools that choose the model class by "
            f"them will not load the output"
        )
    return config, CompanionSet((file,), tuple(notes), tuple(warnings))


def _correct_dtype(config: dict[str, Any], tensors: OutputTensors) -> Iterator[str]:
    """The dtype that most elements have, wherever config or text config tells another.

    Other parts (a vision tower) keep theirs as long as some tensor has it.
    """
    elements: Counter[DType] = Counter()
    for dtype, shape in tensors.values():
        if dtype in OUTPUT_DTYPES.values():
            elements[dtype] += prod(shape)
    if not elements:
        return
    main = max(elements, key=lambda dtype: (elements[dtype], dtype.itemsize, dtype.name)).name
    present = {dtype.name for dtype in elements}
    for part in _parts(config):
        for key in _DTYPE_KEYS:
            told = part.get(key)
            if not isinstance(told, str):
                continue
            language = part is config or part is config.get("text_config")
            if told.removeprefix("torch.") not in ({main} if language else present):
                part[key] = main
                yield f"{CONFIG}: {key} {told} → {main}"


def _without_quantisation(config: dict[str, Any]) -> Iterator[str]:
    """What is written are the weights' values."""
    for part in _parts(config):
        for key in ("quantization_config", "compression_config"):
            if part.pop(key, None) is not None:
                yield f"{CONFIG}: {key} is left out, since the weights are not quantised any more"


def _correct_vocabulary(
    config: dict[str, Any], chosen: Checkpoint, tensors: OutputTensors
) -> Iterator[str]:
    """vocab_size moves with the embedding's rows.

    A vocab_size that differs from the rows of its own checkpoint keeps that difference: some
    architectures have rows beyond their vocabulary.
    """
    rows = embedding_rows({name: shape for name, (_, shape) in tensors.items()})
    own = vocabulary_rows(chosen)
    if rows is None:
        return
    for part in (config, config.get("text_config")):
        told = part.get("vocab_size") if isinstance(part, dict) else None
        if isinstance(part, dict) and type(told) is int:
            right = rows if own is None else told + rows - own
            if right != told:
                part["vocab_size"] = right
                yield f"{CONFIG}: vocab_size {told} → {right}, the rows of the embedding"


def _correct_tie(config: dict[str, Any], chosen: Checkpoint, own_head: str | None) -> Iterator[str]:
    """A head of its own must not be tied when the model is loaded: its values would be lost."""
    if own_head is None:
        return
    text = config.get("text_config")
    tied = [
        part
        for part in (config, text)
        if isinstance(part, dict) and part.get(TIE, own_head not in chosen.tensors) is True
    ]
    for part in tied:
        part[TIE] = False
    if tied:
        yield f"{CONFIG}: {TIE} → false, since {own_head} now differs from the embedding"


def _parts(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config and the configs nested in it (text_config, vision_config, decoder, ...)."""
    yield config
    for key, value in config.items():
        if isinstance(value, dict) and (key.endswith("_config") or "model_type" in value):
            yield from _parts(value)
