"""Models at URLs, through fsspec: listed where the store can, read by ranges, retried.

Nothing is copied to this machine whole but the small files around the weights, which go into a
temporary folder when they are asked for. Credentials, endpoints and the like are the store's own
library's business (environment, profiles, fsspec's configuration).
"""

import random
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from mergeengine.checkpoints.documents import shown
from mergeengine.checkpoints.folder import INDEX, MAX_DOCUMENT, SINGLE, is_companion
from mergeengine.checkpoints.reading import Read
from mergeengine.errors import CheckpointError, InputChangedError
from mergeengine.lazy.stored import RemotePath, StoredFile
from mergeengine.values.references import public

ATTEMPTS = 5
_PAUSE = 1.0  # seconds before the second attempt, doubled for each after it
_MOST_PAUSE = 60.0  # even where a server asks for more
_REQUESTS = 8  # at a time, for one model's small files
_FIRST_READ = 64 * 1024  # one request is enough for the header of most files
_STALLED = 60.0  # seconds without a byte
_PASSING = {408, 425, 429}  # and everything from 500 on
_HTTP = ("http://", "https://")
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

_T = TypeVar("_T")


def read_range(file: RemotePath, start: int, stop: int, size: int) -> bytes:
    """Bytes ``start:stop`` of a file of ``size`` bytes, in one request that is retried.

    Trouble that may pass is tried ``ATTEMPTS`` times, with pauses that grow. CheckpointError for
    what does not pass, InputChangedError where the file is another, or shorter, than it was.
    """
    if start >= stop:
        return b""

    def attempt() -> bytes:
        system, path = _system(file.url)
        if file.url.startswith(_HTTP):
            # Not `cat_file`: a server that ignores ranges would send everything.
            headers = {"If-Match": file.version} if file.version.startswith('"') else {}
            headers["Accept-Encoding"] = "identity"
            with system.open(path, size=size, cache_type="none", headers=headers) as stream:
                stream.seek(start)
                data: bytes = stream.read(stop - start)
        else:
            data = system.cat_file(path, start=start, end=stop)
        return data

    data = _persistently(attempt, file, f"bytes {start} to {stop}")
    if len(data) != stop - start:
        raise InputChangedError(
            f"{file}: the file ends at byte {start + len(data)}, although {size} bytes were "
            "announced: it was truncated while it was being read"
        )
    return data


def check_unchanged(file: StoredFile) -> None:
    """InputChangedError where a remote file is not what it was when its header was read."""
    assert isinstance(file.path, RemotePath)
    size, version = _look(file.path)
    if (size, version) != (file.size, file.path.version):
        raise InputChangedError(
            f"{file.path}: changed while it was being read (size, ETag or time differ); nothing "
            "was written under the final name. Run again when it is complete"
        )


def stored_file(url: str) -> StoredFile:
    """A remote file as it is now; CheckpointError where there is none."""
    path = RemotePath(url, public(url))
    size, version = _look(path)
    return StoredFile(RemotePath(url, path.shown, version), size)


def reads_of(file: StoredFile) -> Read:
    """Reads of a remote file; its beginning is read ahead."""
    path = file.path
    assert isinstance(path, RemotePath)
    ahead = b""

    def read(offset: int, size: int) -> bytes:
        nonlocal ahead
        stop = min(offset + size, file.size)
        if not ahead and offset == 0:
            ahead = read_range(path, 0, min(_FIRST_READ, file.size), file.size)
        if stop <= len(ahead):
            return ahead[offset:stop]
        known = ahead[offset:]
        return known + read_range(path, offset + len(known), stop, file.size)

    return read


def load_library(url: str) -> None:
    """Import what a URL is read with; CheckpointError where it is not installed."""
    _system(url)


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
        return not self.url.startswith(_HTTP)

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
            return _look_for(RemotePath(url, public(url)))[0]

        unknown = [name for name in names if name not in self._found]
        with ThreadPoolExecutor(_REQUESTS) as pool:
            self._found.update(zip(unknown, pool.map(size_of, unknown), strict=True))

    def _listing(self, url: str) -> dict[str, int | None]:
        """Names and sizes; the names of folders end with a slash."""
        place = RemotePath(url, public(url))

        def attempt() -> list[dict[str, Any]]:
            system, path = _system(url)
            system.invalidate_cache()
            found: list[dict[str, Any]] = system.ls(path, detail=True)
            return found

        try:
            entries = _persistently(attempt, place, "its listing")
        except _NotFoundError as error:
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
        if isinstance(name, str) and name.endswith(".safetensors") and name != SINGLE:
            return True
        return isinstance(name, str) and self.folder.has(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name, size in self.folder._found.items() if size is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _NotFoundError(CheckpointError):
    """There is nothing at a URL."""


def _look(path: RemotePath) -> tuple[int, str]:
    """Size, and what tells versions apart; CheckpointError where nothing is there."""
    size, version = _look_for(path)
    if size is None:
        raise CheckpointError(f"{path}: there is no such file")
    return size, version


def _look_for(path: RemotePath) -> tuple[int | None, str]:
    """The same; a size of None where nothing is there."""

    def attempt() -> dict[str, Any]:
        system, place = _system(path.url)
        system.invalidate_cache()
        info: dict[str, Any] = system.info(place)
        return info

    try:
        info = _persistently(attempt, path, "its size")
    except _NotFoundError:
        return None, ""
    if info.get("type") == "directory":
        return None, ""
    if info.get("size") is None:
        raise CheckpointError(f"{path}: the server does not say how large the file is")
    keys = ("ETag", "etag", "md5Hash", "generation", "Last-Modified", "LastModified", "mtime")
    # What a memory file system knows is when an object was made: a time like any other.
    found = [str(info[key]) for key in (*keys, "created") if info.get(key)]
    return int(info["size"]), found[0] if found else ""


@lru_cache(maxsize=64)
def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and its path there."""
    scheme = url.partition("://")[0]
    try:
        import fsspec
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise _not_installed(url, "fsspec", error) from error
    if scheme.lower() not in fsspec.available_protocols():
        raise CheckpointError(
            f"{public(url)}: no file system is known for {shown(scheme)}://; see fsspec's list of "
            "them, and install the package that brings it"
        )
    options: dict[str, Any] = {}
    if url.startswith(_HTTP):
        try:
            from aiohttp import ClientTimeout
        except ImportError as error:
            raise _not_installed(url, "aiohttp", error) from error
        timeout = ClientTimeout(total=None, sock_connect=_STALLED / 2, sock_read=_STALLED)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
    try:
        system, path = url_to_fs(url, use_listings_cache=False, **options)
    except ImportError as error:
        raise _not_installed(url, str(error).partition("install ")[2] or scheme, error) from error
    except Exception as error:  # whatever the store's library makes of its settings
        raise CheckpointError(f"{public(url)} cannot be opened: {_reason(error)}") from error
    return system, path


def _not_installed(url: str, package: str, error: ImportError) -> CheckpointError:
    return CheckpointError(
        f"{public(url)}: reading this takes a package that is not installed ({_reason(error)}): "
        f"pip install 'mergeengine[remote]' for fsspec and http, and {package.strip(' .')} beside "
        "it for other stores (s3fs for s3://, gcsfs for gs://)"
    )


def _persistently(attempt: Callable[[], _T], path: RemotePath, what: str) -> _T:
    """The result of an attempt, which is repeated while the trouble may pass."""
    for number in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except CheckpointError:
            raise
        except Exception as error:  # the store's, its HTTP client's, and its transport's errors
            status = _status(error)
            if status == 412:
                raise InputChangedError(
                    f"{path}: changed since its header was read (its ETag is another); run again"
                ) from error
            *_, origin = _chain(error)
            if status in (404, 410) or (status is None and isinstance(origin, FileNotFoundError)):
                raise _NotFoundError(f"{path}: there is no such file") from error
            if not _may_pass(error, status):
                raise CheckpointError(_refused(path, what, error, status)) from error
            if number == ATTEMPTS:
                raise CheckpointError(
                    f"{path}: {what} could not be read in {ATTEMPTS} attempts: {_reason(error)}; "
                    "run the same command again to go on from here"
                ) from error
            time.sleep(_pause(error, number))
    raise AssertionError("unreachable")


def _refused(path: RemotePath, what: str, error: Exception, status: int | None) -> str:
    if status in (401, 403) or isinstance(error, PermissionError):
        return (
            f"{path}: access is refused ({_reason(error)}): check the store's credentials, or the "
            "signature of the URL"
        )
    if isinstance(error, ValueError) and "range" in str(error):
        return (
            f"{path}: the server does not send parts of a file (it ignores ranges): download the "
            "model and give its local path"
        )
    return f"{path}: {what} cannot be read: {_reason(error)}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(5):
        if error is None:
            return
        yield error
        error = error.__cause__


def _status(error: Exception) -> int | None:
    """The HTTP status that is behind an error: fsspec calls many of them FileNotFoundError."""
    for each in _chain(error):
        response = getattr(each, "response", None)
        if isinstance(response, dict):  # botocore's
            response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        # `code` is gcsfs's; in aiohttp's errors it is none of the server's.
        name = "code" if type(each).__module__.startswith("gcsfs") else "status"
        for found in (getattr(each, name, None), response):
            if isinstance(found, int) and 400 <= found < 600:
                return found
    return None


def _may_pass(error: Exception, status: int | None) -> bool:
    if status is not None:
        return status in _PASSING or status >= 500
    lasting = (PermissionError, NotImplementedError, ValueError, TypeError, AttributeError)
    names = " ".join(type(each).__name__ for each in _chain(error))
    return not isinstance(error, lasting) and "Credential" not in names


def _pause(error: Exception, number: int) -> float:
    """Seconds to wait: what the server asks for, or longer each time, never two alike."""
    for each in _chain(error):
        asked = str((getattr(each, "headers", None) or {}).get("Retry-After", ""))
        if re.fullmatch(r"\d{1,6}", asked):
            return min(float(asked), _MOST_PAUSE)
    pause: float = min(_PAUSE * 2 ** (number - 1), _MOST_PAUSE)
    return pause * random.uniform(0.5, 1.5)


def _reason(error: Exception) -> str:
    """An error in one line, without what a URL must not show."""
    origin: BaseException = error
    if isinstance(error, FileNotFoundError):  # fsspec's word for all that `info` meets
        *_, origin = _chain(error)
    status, message = getattr(origin, "status", None), getattr(origin, "message", None)
    if isinstance(status, int) and isinstance(message, str):
        return f"HTTP {status} {public(message)}".strip()
    lines = [line.strip() for line in public(str(origin)).splitlines() if line.strip()]
    text = lines[0].rstrip(".") if lines else type(origin).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."
