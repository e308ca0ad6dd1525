"""Model references: a local path, a repository on the hub (``org/name[@revision]``), or a URL.

What is written down of a URL (locks, manifests, messages) has no credentials: those in front of
the host are refused, and a query, which may be a signature, is replaced by dots (`public`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergeengine.values.excerpts import excerpt
from mergeengine.values.positions import Position
from mergeengine.values.selectors import LayerRange

_LOCAL = re.compile(r"\.{1,2}(?:/.*)?|[/~].*")
_WORD = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB = re.compile(rf"(?P<repo>{_WORD}(?:/{_WORD})?)(?:@(?P<revision>.*))?")
# The same for editors, in the words that Python's and JavaScript's expressions share.
REFERENCE = (
    rf"^(?:\.{{1,2}}(?:/.*)?|[/~].*|{_WORD}(?:/{_WORD})?(?:@[^\s@:?*\[\\^~]+)?"
    rf"|(?!file:|local:|https?://(?:www\.)?(?:huggingface\.co|hf\.co)/{_WORD}(?:/{_WORD})?$)"
    r"(?:abfss?://[^/?#:@]+@|[A-Za-z][A-Za-z0-9+.-]*://)"
    r"[^/?#@]*(?:/[^?#]*)?(?:\.safetensors\?[^#]*)?)$"
)
_REVISION = re.compile(r"[^\s@:?*\[\\^~]+")
_HUB_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<rest>.+)")
_HF = "hf://"
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<host>[^/?#]*)(?P<path>[^?#]*)(?P<rest>.*)"
)
_QUERY = re.compile(r"(https?://[^\s?'\"]+\?)[^\s'\"]+", re.IGNORECASE)
_USER = re.compile(r"(://)[^/\s?#'\"]*@")
_CONTAINER_AT_ACCOUNT = ("abfs", "abfss")  # their @ is part of the name
_LOCAL_RULE = "a local path begins with ./ ../ / or ~"


@dataclass(frozen=True, slots=True)
class Slab:
    """Layers of a model that are a part of a stack, in this order; all of them where none are
    named."""

    model: ModelReference
    layers: tuple[LayerRange, ...] = ()

    @property
    def text(self) -> str:
        """``./a 0-15``"""
        return f"{self.model.text} {', '.join(map(str, self.layers))}".rstrip()


@dataclass(frozen=True, slots=True)
class ModelReference:
    """One model as a plan names it: an absolute local `path`, `repo` on the hub, or a `url`.

    `text` is what the user wrote, fit to be shown: of a signed URL it has not the signature. Of an
    adapter, `adapts` is the model that it changes. A `stack` is made of layers of other models, and
    has no place of its own.
    """

    text: str
    path: Path | None = None
    repo: str | None = None
    revision: str | None = None
    url: str | None = field(default=None, repr=False)
    position: Position | None = field(default=None, compare=False)
    adapts: ModelReference | None = None
    stack: tuple[Slab, ...] = ()

    def __post_init__(self) -> None:
        if [self.path, self.repo, self.url, self.stack or None].count(None) != 3:
            raise ValueError("a model reference has either a path, a repository, a URL or a stack")

    @classmethod
    def of_stack(cls, slabs: Iterable[Slab], position: Position | None = None) -> ModelReference:
        """The model of these layers, one over the other."""
        stack = tuple(slabs)
        text = f"stack of {' + '.join(slab.text for slab in stack)}"
        return cls(text, position=position, stack=stack)

    def each(self) -> Iterator[ModelReference]:
        """This, of an adapter its base too; of a stack, which lies nowhere itself, its parts."""
        if not self.stack:
            yield self
        if self.adapts is not None:
            yield from self.adapts.each()
        for slab in self.stack:
            yield from slab.model.each()

    @property
    def alone(self) -> ModelReference:
        """An adapter's own files, without the model that it changes."""
        return replace(self, adapts=None)

    @property
    def is_local(self) -> bool:
        return self.path is not None

    def __str__(self) -> str:
        return self.text


def parse_reference(text: str, folder: Path, position: Position | None = None) -> ModelReference:
    """The model that `text` names; local paths are relative to `folder`. Reads nothing.

    ValueError where it is neither a local path, nor a name on the hub, nor a URL.
    """
    check_reference(text)
    if _LOCAL.fullmatch(text):
        return ModelReference(text, path=local_path(text, folder), position=position)
    if "://" in text and not text.startswith(_HF):
        return ModelReference(public(text), url=text.rstrip("/"), position=position)
    repo, _, revision = text.removeprefix(_HF).partition("@")
    return ModelReference(text, repo=repo, revision=revision or None, position=position)


def check_reference(text: str) -> None:
    """ValueError, with the way out, where `text` has not the form of a reference."""
    if _LOCAL.fullmatch(text):
        check_path(text)
        return
    check_printable(text)
    url = _URL.fullmatch(text)
    if url is not None and not text.startswith(_HF):
        _check_url(text, url)
        return
    hub = _HUB.fullmatch(text.removeprefix(_HF))
    if hub is None or text.endswith(".safetensors"):
        shown = excerpt(public(text))
        raise ValueError(f"`{shown}` is not a model reference: {_way_out(text)}")
    if hub["revision"] is None:
        return
    if not hub["revision"]:
        raise ValueError(f"`{excerpt(text)}` ends with @ but names no revision after it")
    if not _REVISION.fullmatch(hub["revision"]) or ".." in hub["revision"]:
        revision = excerpt(hub["revision"])
        raise ValueError(f"`{revision}` is not a revision: expected a branch, tag or commit")


def public(text: str) -> str:
    """`text` without the queries of the URLs in it, which may be signatures, and without users."""
    return _USER.sub(_hidden_user, _QUERY.sub(r"\1...", text)) if "://" in text else text


def without_secrets(value: Any, beside: Any = None) -> Any:
    """Plain data without the queries of its URLs, nor texts of which those queries were made.

    The queries are those of ``beside``, if given.
    """
    queries = "\n".join(_queries(value if beside is None else beside))
    return _without(value, queries)


def _queries(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from (match[0][len(match[1]) :] for match in _QUERY.finditer(value))
    elif isinstance(value, Mapping):
        for child in value.values():
            yield from _queries(child)
    elif isinstance(value, list):
        for child in value:
            yield from _queries(child)


def _without(value: Any, queries: str) -> Any:
    if isinstance(value, str):
        return "..." if queries and value and value in queries else public(value)
    if isinstance(value, Mapping):
        return {key: _without(child, queries) for key, child in value.items()}
    if isinstance(value, list):
        return [_without(child, queries) for child in value]
    return value


def _hidden_user(match: re.Match[str]) -> str:
    before = match.string[: match.start()].rpartition(" ")[2].strip("'\"`").lower()
    named = before.endswith(_CONTAINER_AT_ACCOUNT) and ":" not in match[0].removeprefix("://")
    return match[0] if named else "://...@"


def _check_url(text: str, url: re.Match[str]) -> None:
    """ValueError for a URL that cannot be, or must not be, written in a plan."""
    shown, scheme = excerpt(public(text)), url["scheme"].lower()
    page = _HUB_PAGE.fullmatch(text)
    if page is not None and _HUB.fullmatch(page["rest"]):
        raise ValueError(f"`{shown}` is the page of a hub model: write `{excerpt(page['rest'])}`")
    if scheme in ("file", "local"):
        raise ValueError(f"`{shown}`: write the path itself; {_LOCAL_RULE}")
    user, at, _ = url["host"].rpartition("@")
    if at and (scheme not in _CONTAINER_AT_ACCOUNT or ":" in user):
        raise ValueError(
            f"`{shown}` has a user or password before its host: a plan is made to be shared, so "
            "give credentials as the store's own library takes them (environment, profile)"
        )
    if url["rest"] and (scheme not in ("http", "https") or "#" in url["rest"]):
        raise ValueError(
            f"`{shown}`: only http and https URLs may have a query, and none a fragment: expected "
            "scheme://place/model"
        )
    if not (url["host"] + url["path"]).strip("/"):
        raise ValueError(f"`{shown}` names no model: expected scheme://place/model")
    if url["rest"] and not url["path"].endswith(".safetensors"):
        raise ValueError(
            f"`{shown}`: a query belongs to one file: expected the URL of a .safetensors file, or "
            "that of a folder without a query"
        )


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
    if text.startswith(_HF):
        return "expected hf://org/name[@revision], a whole model"
    if "://" in text:
        return "expected scheme://place/model (URLs of several schemes are not read)"
    if "\\" in text or re.match(r"[A-Za-z]:", text):
        return f"{_LOCAL_RULE}, and its folders are separated by /"
    if text.count("/") != 1 or text.endswith((".safetensors", "/")):
        return f"{_LOCAL_RULE}; did you mean `./{excerpt(text)}`?"
    return f"expected org/name[@revision] on the hub, or a local path ({_LOCAL_RULE})"
