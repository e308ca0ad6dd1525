"""Model references: a local path, or a repository on the hub (``org/name[@revision]``)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from mergeengine.values.excerpts import excerpt
from mergeengine.values.positions import Position

_LOCAL = re.compile(r"\.{1,2}(?:/.*)?|[/~].*")
_WORD = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB = re.compile(rf"(?P<repo>{_WORD}(?:/{_WORD})?)(?:@(?P<revision>.*))?")
# The same for editors, in the words that Python's and JavaScript's expressions share.
REFERENCE = rf"^(?:\.{{1,2}}(?:/.*)?|[/~].*|{_WORD}(?:/{_WORD})?(?:@[^\s@:?*\[\\^~]+)?)$"
_REVISION = re.compile(r"[^\s@:?*\[\\^~]+")
_HUB_URL = re.compile(r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://)(?P<rest>.+)")
_LOCAL_RULE = "a local path begins with ./ ../ / or ~"


@dataclass(frozen=True, slots=True)
class ModelReference:
    """One model as a plan names it: either an absolute local `path`, or `repo` on the hub."""

    text: str
    path: Path | None = None
    repo: str | None = None
    revision: str | None = None
    position: Position | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if (self.path is None) == (self.repo is None):
            raise ValueError("a model reference has either a path or a repository")

    @property
    def is_local(self) -> bool:
        return self.path is not None

    def __str__(self) -> str:
        return self.text


def parse_reference(text: str, folder: Path, position: Position | None = None) -> ModelReference:
    """The model that `text` names; local paths are relative to `folder`. Reads nothing.

    ValueError where it is neither a local path nor a name on the hub.
    """
    check_reference(text)
    if _LOCAL.fullmatch(text):
        return ModelReference(text, path=local_path(text, folder), position=position)
    repo, _, revision = text.partition("@")
    return ModelReference(text, repo=repo, revision=revision or None, position=position)


def check_reference(text: str) -> None:
    """ValueError, with the way out, where `text` has not the form of a reference."""
    if _LOCAL.fullmatch(text):
        check_path(text)
        return
    check_printable(text)
    hub = _HUB.fullmatch(text)
    if hub is None or text.endswith(".safetensors"):
        raise ValueError(f"`{excerpt(text)}` is not a model reference: {_way_out(text)}")
    if hub["revision"] is None:
        return
    if not hub["revision"]:
        raise ValueError(f"`{excerpt(text)}` ends with @ but names no revision after it")
    if not _REVISION.fullmatch(hub["revision"]) or ".." in hub["revision"]:
        revision = excerpt(hub["revision"])
        raise ValueError(f"`{revision}` is not a revision: expected a branch, tag or commit")


def check_printable(text: str) -> None:
    """ValueError for what can be no name or path: empty, padded, or with control characters."""
    if not text.strip():
        raise ValueError("expected a text that is not empty")
    if text != text.strip():
        raise ValueError(f"the text '{excerpt(text)}' begins or ends with a space")
    if not text.isprintable():
        raise ValueError(f"the text '{excerpt(text)}' contains a character that cannot be printed")


def check_path(text: str) -> None:
    """ValueError where `text` can be no path, or begins with the home of an unknown user."""
    check_printable(text)
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"`{excerpt(text)}`: there is no such home folder") from None


def local_path(text: str, folder: Path) -> Path:
    """The absolute path of `text`, which is relative to `folder`; ``~`` is the home folder.

    ``..`` is resolved as the operating system does it, the last component is kept as written: a
    symbolic link keeps its name.
    """
    path = folder / Path(text).expanduser()
    if path.name in ("", ".."):
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.parent)) / path.name


def _way_out(text: str) -> str:
    url = _HUB_URL.fullmatch(text)
    if url is not None and _HUB.fullmatch(url["rest"]):
        return f"write `{excerpt(url['rest'])}`"
    if "://" in text:
        return "URLs are not read; download the model and give its local path"
    if "\\" in text or re.match(r"[A-Za-z]:", text):
        return f"{_LOCAL_RULE}, and its folders are separated by /"
    if text.count("/") != 1 or text.endswith((".safetensors", "/")):
        return f"{_LOCAL_RULE}; did you mean `./{excerpt(text)}`?"
    return f"expected org/name[@revision] on the hub, or a local path ({_LOCAL_RULE})"
