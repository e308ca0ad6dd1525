"""A model in a folder at a URL: its files are listed where the store can, else asked for by name.

Nothing is copied to this machine whole but the small files around the weights, which go into a
temporary folder when they are asked for.
"""

import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from mergeengine.checkpoints.folder import INDEX, MAX_DOCUMENT, SINGLE, SINGLES, is_companion
from mergeengine.checkpoints.remote import (
    HTTP,
    NotFoundError,
    list_folder,
    look_for,
    read_range,
)
from mergeengine.errors import CheckpointError
from mergeengine.lazy.stored import RemotePath
from mergeengine.values.references import public

_REQUESTS = 8  # at a time, for one model's small files
_TEMPLATES = "additional_chat_templates"

# What is looked for where a place cannot be listed (http).
_KNOWN = (
    "config.json", "generation_config.json", "adapter_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json", "tiktoken.model", "chat_template.jinja", "chat_template.json",
    "preprocessor_config.json", "processor_config.json", "README.md", "LICENSE", "LICENSE.txt",
    "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class RemoteFolder:
    """A model in a folder at a URL."""

    url: str
    _found: dict[str, int | None] = field(default_factory=dict, repr=False)  # None: not there
    _copies: "_Copies" = field(default_factory=lambda: _Copies(), repr=False)

    @property
    def label(self) -> str:
        return public(self.url)

    @property
    def listed(self) -> bool:
        """Whether the store says which files there are; else known names are asked for."""
        return not self.url.startswith(HTTP)

    def names(self) -> Collection[str]:
        """The files of the folder and of its chat templates."""
        if not self.listed:
            self._ask(SINGLE, INDEX, "config.json")
            return _Offered(self)
        if not self._found:
            self._found.update(self._listing(self.url))
            if any(name.startswith(f"{_TEMPLATES}/") for name in self._found):
                self._found.update(
                    (f"{_TEMPLATES}/{name}", size)
                    for name, size in self._listing(f"{self.url}/{_TEMPLATES}").items()
                )
        return tuple(sorted(name for name in self._found if not name.endswith("/")))

    def companions(self) -> tuple[str, ...]:
        if not self.listed:
            self._ask(*_KNOWN)
        return tuple(name for name in sorted(self.names()) if is_companion(name))

    def companion(self, name: str) -> Path | None:
        """A copy of a small file, made now; None where there is none."""
        if not self.has(name):
            return None
        place = self._copies.folder() / name
        if not place.exists():
            content = self.read(name)
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(content)
        return place

    def has(self, name: str) -> bool:
        if self.listed:
            return name in self.names()
        self._ask(name)
        return self._found[name] is not None

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        size = self._found[name]
        assert size is not None, name
        if size > MAX_DOCUMENT:
            raise CheckpointError(f"{self.label}: {name} is implausibly large ({size})")
        url = f"{self.url}/{name}"
        return read_range(RemotePath(url, public(url)), 0, size, size)

    def _ask(self, *names: str) -> None:
        """Find out which of these files there are."""

        def size_of(name: str) -> int | None:
            url = f"{self.url}/{name}"
            return look_for(RemotePath(url, public(url)))[0]

        unknown = [name for name in names if name not in self._found]
        with ThreadPoolExecutor(_REQUESTS) as pool:
            self._found.update(zip(unknown, pool.map(size_of, unknown), strict=True))

    def _listing(self, url: str) -> dict[str, int | None]:
        """Names and sizes; the names of folders end with a slash."""
        place = RemotePath(url, public(url))
        try:
            entries = list_folder(place)
        except NotFoundError as error:
            raise CheckpointError(f"{place}: there is no such folder, or it is empty") from error
        found: dict[str, int | None] = {}
        for entry in entries:
            name = str(entry["name"]).rstrip("/").rpartition("/")[2]
            if name.startswith(".") or not name.isprintable():
                continue
            if entry.get("type") == "directory":
                found[f"{name}/"] = None
            else:
                found[name] = int(entry.get("size") or 0)
        return found


class _Copies:
    """A temporary folder, made when it is asked for and removed with this object."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    def folder(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="mergeengine-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder


@dataclass(frozen=True, slots=True)
class _Offered(Collection[str]):
    """The names of a place that cannot be listed, as far as they were asked for.

    Every file of weights that an index names counts as there: whether it is shows when its header
    is read, of many at a time.
    """

    folder: RemoteFolder

    def __contains__(self, name: object) -> bool:
        if (
            isinstance(name, str)
            and name.endswith((".safetensors", ".bin"))
            and name not in SINGLES
        ):
            return True
        return isinstance(name, str) and self.folder.has(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name, size in self.folder._found.items() if size is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)
