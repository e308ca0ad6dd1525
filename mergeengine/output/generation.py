"""generation_config.json, and whether config, generation config and tokenizer agree on the end."""

from collections.abc import Mapping
from typing import Any

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.small_files import read_json
from mergeengine.checkpoints.vocabulary import Vocabulary
from mergeengine.output.companion_files import Companion, CompanionSet, copies, json_bytes
from mergeengine.output.token_ids import OutputVocabulary, correct_ids

GENERATION_CONFIG = "generation_config.json"


def choose_generation_config(
    chosen: Checkpoint, target: Checkpoint, vocabulary: OutputVocabulary
) -> tuple[Checkpoint | None, dict[str, Any] | None, CompanionSet]:
    """The model whose file is taken (``chosen``, else ``target``, else none), and what it says.

    Its ids of tokens are made to fit ``vocabulary``.
    """
    for model in (chosen, target):
        content = read_json(model, GENERATION_CONFIG)
        if content is not None:
            note = f"{GENERATION_CONFIG} of {model.reference.text}"
            if model is not chosen:
                note += f" (the target), because {chosen.reference.text} has none"
            files = copies(model, [GENERATION_CONFIG])
            corrected = tuple(correct_ids(content, GENERATION_CONFIG, model, vocabulary))
            if corrected:
                files = (Companion(GENERATION_CONFIG, json_bytes(content)),)
            return model, content, CompanionSet(files, (note, *corrected))
    note = f"no model has a {GENERATION_CONFIG}: none is written"
    return None, None, CompanionSet(notes=(note,))


def eos_warning(
    config: tuple[Checkpoint, Mapping[str, Any]] | None,
    generation: tuple[Checkpoint, Mapping[str, Any]] | None,
    tokenizer: tuple[Checkpoint, Vocabulary] | None,
) -> str | None:
    """One sentence where the output would not stop where it was taught to; None if all agree.

    Text generation stops at the ids of generation_config.json, or without that file at those
    of config.json. The tokenizer's eos must be among them, and so must be the config's.
    """
    configured = eos_ids(config[1]) if config else ()
    stops = eos_ids(generation[1]) if generation else configured
    expected = set(configured)
    places = []
    if config:
        places.append(f"config.json ({config[0].reference.text}) {_listed(configured)}")
    if generation:
        places.append(f"{GENERATION_CONFIG} ({generation[0].reference.text}) {_listed(stops)}")
    if tokenizer and tokenizer[1].eos_id is not None and (generation or configured):
        model, vocabulary = tokenizer
        expected.add(tokenizer[1].eos_id)
        places.append(f"tokenizer ({model.reference.text}) {vocabulary.eos} = {vocabulary.eos_id}")
    missing = sorted(expected - set(stops))
    if not missing:
        return None
    where = GENERATION_CONFIG if generation else "config.json"
    return (
        f"end-of-sequence ids differ: {'; '.join(places)}. Text generation stops at those of "
        f"{where} only, so not at {_listed(missing)}: take tokenizer, generation_config and "
        f"config from models that agree (`output.tokenizer`, `output.generation_config`, "
        f"`output.config`), or add the id to {where} of the output"
    )


def eos_ids(config: Mapping[str, Any]) -> tuple[int, ...]:
    """``eos_token_id`` is an id or a list of ids; multimodal configs keep it with their text."""
    value = config.get("eos_token_id")
    if value is None and isinstance(config.get("text_config"), dict):
        value = config["text_config"].get("eos_token_id")
    listed = value if isinstance(value, list) else [value]
    return tuple(number for number in listed if type(number) is int)


def _listed(ids: tuple[int, ...] | list[int]) -> str:
    return ", ".join(map(str, ids)) or "none"
