"""Files at URLs, through fsspec: read by ranges, retried, and known again.

Credentials, endpoints and the like are the store's own library's business (environment, profiles,
fsspec's configuration).
"""

import random
import re
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypeVar

from mergeengine.checkpoints.documents import shown
from mergeengine.checkpoints.reading import Read
from mergeengine.errors import CheckpointError, InputChangedError
from mergeengine.lazy.stored import RemotePath, StoredFile
from mergeengine.values.references import public

ATTEMPTS = 5
_PAUSE = 1.0  # seconds before the second attempt, doubled for each after it
_MOST_PAUSE = 60.0  # even where a server asks for more
_FIRST_READ = 64 * 1024  # one request is enough for the header of most files
_STALLED = 60.0  # seconds without a byte
_PASSING = {408, 425, 429}  # and everything from 500 on
HTTP = ("http://", "https://")

_T = TypeVar("_T")


class NotFoundError(CheckpointError):
    """There is nothing at a URL."""


def read_range(file: RemotePath, start: int, stop: int, size: int) -> bytes:
    """Bytes ``start:stop`` of a file of ``size`` bytes, in one request that is retried.

    Trouble that may pass is tried ``ATTEMPTS`` times, with pauses that grow. CheckpointError for
    what does not pass, InputChangedError where the file is another, or shorter, than it was.
    """
    if start >= stop:
        return b""

    def attempt() -> bytes:
        system, path = _system(file.url)
        if file.url.startswith(HTTP):
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


def list_folder(path: RemotePath) -> list[dict[str, Any]]:
    """What a store says of each entry of a folder; NotFoundError where there is none."""

    def attempt() -> list[dict[str, Any]]:
        system, place = _system(path.url)
        system.invalidate_cache()
        found: list[dict[str, Any]] = system.ls(place, detail=True)
        return found

    return _persistently(attempt, path, "its listing")


def load_library(url: str) -> None:
    """Import what a URL is read with; CheckpointError where it is not installed."""
    _system(url)


def _look(path: RemotePath) -> tuple[int, str]:
    """Size, and what tells versions apart; CheckpointError where nothing is there."""
    size, version = look_for(path)
    if size is None:
        raise CheckpointError(f"{path}: there is no such file")
    return size, version


def look_for(path: RemotePath) -> tuple[int | None, str]:
    """Size, and what tells versions apart; a size of None where nothing is there."""

    def attempt() -> dict[str, Any]:
        system, place = _system(path.url)
        system.invalidate_cache()
        info: dict[str, Any] = system.info(place)
        return info

    try:
        info = _persistently(attempt, path, "its size")
    except NotFoundError:
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
    if "%" in url and url.startswith(HTTP):
        options["encoded"] = True  # a signature is sent as it was written
    if url.startswith(HTTP):
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
                raise NotFoundError(f"{path}: there is no such file") from error
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
