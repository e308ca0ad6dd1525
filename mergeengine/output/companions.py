"""Everything a model folder needs besides its weights, gathered from the models of a merge."""

import re

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.token_rows import embedding_rows
from mergeengine.checkpoints.vocabulary import Vocabulary, read_vocabulary
from mergeengine.output.companion_files import (
    Companion,
    CompanionSet,
    candidates,
    copies,
    joined,
)
from mergeengine.output.custom_code import choose_code
from mergeengine.output.generation import choose_generation_config, eos_warning
from mergeengine.output.model_config import OutputTensors, choose_config
from mergeengine.output.token_ids import OutputVocabulary
from mergeengine.output.tokenizer_files import choose_tokenizer

__all__ = ["Companion", "CompanionSet", "gather_companions"]

_LICENCE = re.compile(r"(?!.*\.py$)(?:licen[sc]e|notice|use_policy)(?:[ ._-].*)?", re.IGNORECASE)


def gather_companions(
    *,
    target: Checkpoint,
    tokenizer: Checkpoint,
    config: Checkpoint,
    generation_config: Checkpoint,
    tensors: OutputTensors,
    own_head: str | None = None,
    quantised: bool = False,
) -> CompanionSet:
    """The files to write beside the weights ``tensors``, what was decided, and what looks wrong.

    ``tokenizer``, ``config`` and ``generation_config`` are the models asked for; where one has
    no tokenizer or no generation config, the target's is taken. ``own_head`` names an output head
    that is not, or no longer, equal to the embedding; ``quantised`` says that weights are written
    in 8 bits as the config says. Only known kinds of files are
    taken at all, so nothing else of an input folder can reach the output.
    """
    tokenizer_model, tokenizer_set = choose_tokenizer(tokenizer, target)
    rows = embedding_rows({name: shape for name, (_, shape) in tensors.items()})
    ids = OutputVocabulary(tokenizer_model, rows)
    configured, configuration = choose_config(config, tensors, own_head, ids, quantised=quantised)
    generation_model, generation, generation_set = choose_generation_config(
        generation_config, target, ids
    )
    vocabulary = read_vocabulary(tokenizer_model) if tokenizer_model else Vocabulary()
    eos = eos_warning(
        (config, configured) if configured else None,
        (generation_model, generation) if generation_model and generation is not None else None,
        (tokenizer_model, vocabulary) if tokenizer_model else None,
    )
    too_many = _vocabulary_warning(tokenizer_model, vocabulary, target, rows)
    checks = CompanionSet(warnings=tuple(text for text in (too_many, eos) if text))
    return joined(
        [
            configuration,
            tokenizer_set,
            generation_set,
            choose_code(config, tokenizer_model),
            _licences(target),
            checks,
        ]
    )


def _licences(target: Checkpoint) -> CompanionSet:
    names = [name for name in candidates(target) if _LICENCE.fullmatch(name)]
    if not names:
        return CompanionSet()
    note = f"licence files of {target.reference.text}: {', '.join(names)}"
    return CompanionSet(copies(target, names), (note,))


def _vocabulary_warning(
    model: Checkpoint | None, vocabulary: Vocabulary, target: Checkpoint, rows: int | None
) -> str | None:
    """Ids beyond the embedding crash a model; the target's own excess is its makers' business."""
    if model is None or rows is None or vocabulary.size is None or vocabulary.size <= rows:
        return None
    own = read_vocabulary(target).size
    if own == vocabulary.size:
        return None
    of_target = "" if own is None else f" (the target's has {own})"
    return (
        f"the tokenizer of {model.reference.text} has ids up to {vocabulary.size - 1}{of_target}, "
        f"but the output's embedding has only {rows} rows: tokens beyond them cannot be used; "
        f"`output.tokenizer: target` takes the target's tokenizer"
    )
