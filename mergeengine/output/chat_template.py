"""The chat template of the output, where it is not that of its tokenizer."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.documents import parse_object
from mergeengine.checkpoints.small_files import read_bytes, read_json
from mergeengine.output.companion_files import (
    TEMPLATE_FOLDER,
    Companion,
    CompanionSet,
    joined,
    json_bytes,
)
from mergeengine.values.chat_templates import AUTO, TEMPLATES

_FILE, _CONFIG, _KEY = "chat_template.jinja", "tokenizer_config.json", "chat_template"
_OTHERS = (_FILE, "chat_template.json")


def with_chat_template(
    files: CompanionSet, wanted: str, models: Iterable[Checkpoint]
) -> CompanionSet:
    """The output's ``files``, those of a tokenizer among them, with another chat template.

    ``wanted`` is its text, its name, or `AUTO`: the one that most of ``models`` have, of equally
    many the first; where none has one, nothing changes.
    """
    template = TEMPLATES.get(wanted, wanted)
    if wanted == AUTO:
        counted = Counter(text for each in models if (text := template_of(each)) is not None)
        if not counted:
            return joined([files, CompanionSet(notes=("no model has a chat template",))])
        template = counted.most_common(1)[0][0]
    kept = [
        file
        for file in files.files
        if file.name not in _OTHERS and not file.name.startswith(f"{TEMPLATE_FOLDER}/")
    ]
    kept = [_without_template(file) if file.name == _CONFIG else file for file in kept]
    note = f"{_FILE}: {wanted if wanted == AUTO or wanted in TEMPLATES else 'that of the plan'}"
    added = CompanionSet((Companion(_FILE, template.encode()),), (note,))
    return joined([replace(files, files=tuple(kept)), added])


def template_of(model: Checkpoint) -> str | None:
    """The (default) chat template that a model has; None where it has none."""
    data = read_bytes(model, _FILE)
    if data is not None:
        return data.decode(errors="replace").strip() or None
    found = (read_json(model, _CONFIG) or {}).get(_KEY)
    if isinstance(found, list):  # of several, with names
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    return found.strip() or None if isinstance(found, str) else None


def _without_template(file: Companion) -> Companion:
    """tokenizer_config.json without its own template; as it is where there is none."""
    with file.open() as stream:
        config = parse_object(stream.read(), file.name)
    if _KEY not in config:
        return file
    return Companion(file.name, json_bytes({k: v for k, v in config.items() if k != _KEY}))
