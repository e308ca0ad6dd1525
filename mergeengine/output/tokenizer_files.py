"""Tokenizer, chat template, special tokens and processors: one set, of one model.

Such files refer to each other (ids, templates, normalisation), so a mixture of two models'
files loads without an error and is wrong.
"""

import re
from collections.abc import Iterable

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.output.added_tokens import with_added_tokens
from mergeengine.output.companion_files import (
    TEMPLATE_FOLDER,
    CompanionSet,
    candidates,
    copies,
    joined,
)

PROCESSOR_CONFIGS = (
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "audio_tokenizer_config.json",
)

# Any of these makes a tokenizer; byte-level tokenizers have the configuration alone.
_TOKENIZER = re.compile(
    r"tokenizer(?:_config)?\.json|tekken\.json"
    r"|(?:tokenizer|tiktoken|spiece|spm|spm_char|sentencepiece[\w.-]*)\.model(?:\.v[0-9]+\w*)?"
    r"|[\w.-]+\.(?:tiktoken|spm|tokenizer)"
    r"|(?:entity_|target_)?vocab(?:-\w+)?\.(?:json|txt|bpe)|encoder\.json|byte_maps\.json"
)
_BESIDE_TOKENIZER = re.compile(
    r"special_tokens_map\.json|added_tokens\.json|merges(?:-\w+)?\.txt|bpe\.codes|dict\.txt"
    r"|normalizer\.json|emoji\.json|word_(?:shape|pronunciation)\.json"
    rf"|chat_template\.(?:jinja|json)|{TEMPLATE_FOLDER}/[^/]+\.jinja"
)


def choose_tokenizer(
    chosen: Checkpoint, target: Checkpoint
) -> tuple[Checkpoint | None, CompanionSet]:
    """The model whose set is taken (``chosen``, else ``target``, else none), and the set."""
    model, names = chosen, _set_of(chosen)
    notes: list[str] = []
    warnings: list[str] = []
    others = _set_of(target) if chosen.reference != target.reference else ()
    if not _has_tokenizer(names) and (_has_tokenizer(others) or not names):
        notes.append(f"{chosen.reference.text} has no tokenizer")
        if names:
            warnings.append(
                f"not copied, because {chosen.reference.text} has no tokenizer beside them and "
                f"the target's is taken: {', '.join(names)}; check that those of "
                f"{target.reference.text} do, or put the tokenizer there"
            )
        model, names = target, others
    if not names:
        notes.append("no model has a tokenizer: none is written")
        return None, CompanionSet(notes=tuple(notes))
    notes.append(f"tokenizer files of {model.reference.text}: {', '.join(names)}")
    lost = set(others) & set(PROCESSOR_CONFIGS) - set(names)
    if lost and model is chosen:
        warnings.append(
            f"not copied from the target {target.reference.text}, because the tokenizer is that "
            f"of {model.reference.text}, which has no such file: {', '.join(sorted(lost))}; "
            f"`output.tokenizer: target` takes the target's whole set"
        )
    told = CompanionSet((), tuple(notes), tuple(warnings))
    files = (
        with_added_tokens(model, names)
        if model.added_tokens
        else CompanionSet(copies(model, names))
    )
    return model, joined([told, files])


def has_tokenizer(checkpoint: Checkpoint) -> bool:
    """Whether a model has a tokenizer of its own beside its weights."""
    return _has_tokenizer(_set_of(checkpoint))


def _set_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    return tuple(
        name
        for name in candidates(checkpoint)
        if name in PROCESSOR_CONFIGS
        or _TOKENIZER.fullmatch(name)
        or _BESIDE_TOKENIZER.fullmatch(name)
    )


def _has_tokenizer(names: Iterable[str]) -> bool:
    return any(_TOKENIZER.fullmatch(name) for name in names)
