"""Models of the hub, through huggingface_hub: pinned to a commit, fetched only as far as needed.

The index, the config and the other small files are downloaded when they are asked for; of the
weights only the headers are read, by HTTP range, until `fetch` is called. Endpoint, token, cache
folder and offline mode are the library's own settings (HF_ENDPOINT, HF_TOKEN, HF_HOME,
HF_HUB_OFFLINE).
"""

import contextlib
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergeengine.checkpoints.documents import shown
from mergeengine.checkpoints.folder import MAX_DOCUMENT, LocalFolder, is_companion
from mergeengine.checkpoints.reading import Read
from mergeengine.errors import CheckpointError
from mergeengine.lazy.stored import StoredFile
from mergeengine.values.references import ModelReference

_log = logging.getLogger(__name__)

_FIRST_READ = 256 * 1024  # one request is enough for the header of most files
_NEIGHBOURHOOD = 4 * 1024
_TIMEOUT = 30.0
_RETRY_AFTER = (0.5, 2.0)  # seconds before the second and the third try
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True, slots=True)
class HubModel:
    """One commit of one repository, and what of it lies in the local cache."""

    reference: ModelReference
    repo: str
    commit: str
    snapshot: Path
    sizes: Mapping[str, int]
    offline: bool = False

    @classmethod
    def resolve(
        cls, reference: ModelReference, *, pinned: str | None = None, offline: bool = False
    ) -> "HubModel":
        """The commit that a reference names now (or `pinned`), from the hub or from the cache."""
        from huggingface_hub import constants

        repo = reference.repo
        assert repo is not None, "a local reference"
        if not offline and not constants.HF_HUB_OFFLINE:
            try:
                return _resolve_online(reference, repo, pinned)
            except _HubUnreachableError as error:
                cached = _resolve_cached(reference, repo, pinned, f"the hub fails ({error})")
                _log.warning("%s: the hub fails (%s); using the local cache", reference, error)
                return cached
        return _resolve_cached(reference, repo, pinned, "offline mode is on")

    @property
    def label(self) -> str:
        return self.reference.text

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.sizes))

    def companions(self) -> tuple[str, ...]:
        return tuple(name for name in self.names() if is_companion(name))

    def companion(self, name: str) -> Path | None:
        if name not in self.sizes:
            return None
        self._download(name)
        return LocalFolder(self.snapshot).file(name)

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        if self.sizes[name] > MAX_DOCUMENT:
            raise CheckpointError(f"{self.label}: {name} is implausibly large ({self.sizes[name]})")
        self._download(name)
        return LocalFolder(self.snapshot).read(name)

    def stored_file(self, name: str) -> StoredFile:
        """A file of weights, at the path where it lies or will lie in the cache."""
        file = StoredFile(self.snapshot / name, self.sizes[name])
        self._check(file)
        return file

    def fetch(self, file: StoredFile) -> None:
        """Download a file of weights."""
        self._download(file.local.name)
        self._check(file)

    def reader(self, name: str) -> Read:
        """Reads of a file on the hub by range, some of which are read ahead: its beginning; its
        end, where a zip archive has its directory; and the neighbourhood of what is asked for."""
        size = self.sizes[name]
        held: list[tuple[int, bytes]] = []  # beginning, end and the last neighbourhood

        def ahead(offset: int, length: int) -> tuple[int, bytes]:
            found = next((w for w in held if w[0] <= offset < w[0] + len(w[1])), None)
            if found is not None:
                return found
            if offset >= size - _FIRST_READ:
                offset, length = max(0, size - _FIRST_READ), _FIRST_READ
            else:
                length = max(length, _FIRST_READ if not held else _NEIGHBOURHOOD)
            window = offset, self._range(name, offset, min(length, size - offset))
            held[2:] = []
            held.append(window)
            return window

        def read(offset: int, length: int) -> bytes:
            data = b""
            end = min(offset + length, size)
            while offset < end:
                start, window = ahead(offset, end - offset)
                part = window[offset - start : end - start]
                if not part:
                    break  # the server sends less than it announced
                data += part
                offset += len(part)
            return data

        return read

    def _check(self, file: StoredFile) -> None:
        """A file that is in the cache is inside it, and of the size that the hub announced."""
        if not file.local.exists():
            return
        size = LocalFolder(self.snapshot).file(file.local.name).stat().st_size
        if size != file.size:
            raise CheckpointError(
                f"{file.path} is damaged: {size} bytes, but the hub says {file.size}: delete it "
                "(and the file that it links to) and run again"
            )

    def _download(self, name: str) -> None:
        if (self.snapshot / name).exists():
            return
        if self.offline:
            raise CheckpointError(
                f"{self.label}: {name} is not in the local cache ({self.snapshot}), and the hub "
                "is not reachable or offline mode is on: run once with a connection"
            )
        from huggingface_hub import hf_hub_download

        try:
            hf_hub_download(self.repo, name, revision=self.commit)
        except Exception as error:  # the library's, its HTTP client's, and its transport's errors
            raise CheckpointError(
                f"{self.label}: downloading {name} failed: {_first_line(error)}; run the same "
                "command again"
            ) from error
        assert (self.snapshot / name).exists(), "the layout of the cache has changed"

    def _range(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a file on the hub."""
        if self.offline:
            self._download(name)
        for pause in (*_RETRY_AFTER, None):
            try:
                return _get_range(self.repo, self.commit, name, offset, size)
            except _errors() as error:
                if pause is None or not _is_passing(error):
                    raise CheckpointError(
                        f"{self.label}: reading the header of {name} from the hub failed: "
                        f"{_first_line(error)}"
                    ) from error
                time.sleep(pause)
        raise AssertionError("unreachable")


class _HubUnreachableError(Exception):
    """No answer from the hub, or one that says it has trouble of its own."""


def _resolve_online(reference: ModelReference, repo: str, pinned: str | None) -> HubModel:
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub

    revision = pinned or reference.revision
    api = HfApi()
    page = f"{api.endpoint}/{repo}"
    try:
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT)
    except hub.GatedRepoError as error:
        raise CheckpointError(
            f"{reference}: this model is gated: ask for access at {page}, then {_LOG_IN}"
        ) from error
    except hub.RevisionNotFoundError as error:
        if pinned is not None:
            raise CheckpointError(
                f"{reference}: the locked commit {pinned} is not in {page} any more: lock the "
                "plan anew (mergeengine lock --update) to take what is there now"
            ) from error
        raise CheckpointError(
            f"{reference}: {page} has no branch, tag or commit {shown(revision)}"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{reference}: there is no model {repo} at {api.endpoint}, or it is private: check the "
            f"name, or {_LOG_IN}{_local_hint(reference, repo)}"
        ) from error
    except hub.HFValidationError as error:
        raise CheckpointError(
            f"{reference}: {shown(repo)} cannot be the name of a hub model: expected "
            f"org/name[@revision]; a local path begins with ./{_local_hint(reference, repo)}"
        ) from error
    except _errors() as error:
        if _is_passing(error):
            raise _HubUnreachableError(_first_line(error)) from error
        raise CheckpointError(
            f"{reference}: the hub refuses {page}: {_first_line(error)}; if it is private or "
            f"restricted, {_LOG_IN}"
        ) from error
    if info.sha is None or not re.fullmatch("[0-9a-f]{40}", info.sha):
        raise CheckpointError(f"{reference}: {page} names no commit; is it a model hub?")
    folder = _repo_folder(repo)
    _remember(folder, revision or "main", info.sha)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    return HubModel(reference, repo, info.sha, folder / "snapshots" / info.sha, sizes)


def _resolve_cached(reference: ModelReference, repo: str, pinned: str | None, why: str) -> HubModel:
    """The same from the local cache alone: the files that are there."""
    folder = _repo_folder(repo)
    revision = pinned or reference.revision or "main"
    commit = _cached_commit(folder, revision)
    if commit is None:
        raise CheckpointError(
            f"{reference}: {why}, and the local cache ({folder.parent}) has no {repo} at revision "
            f"{revision}: run once with a connection{_local_hint(reference, repo)}"
        )
    snapshot = folder / "snapshots" / commit
    model = HubModel(reference, repo, commit, snapshot, {}, offline=True)
    local = LocalFolder(snapshot)
    there = [name for name in local.names() if (snapshot / name).exists()]
    sizes = {name: local.file(name).stat().st_size for name in there}
    return replace(model, sizes=sizes)


def _cached_commit(folder: Path, revision: str) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        revision = (folder / "refs" / revision).read_text("ascii").strip()
    if not re.fullmatch("[0-9a-f]{7,40}", revision):
        return None
    found = [path.name for path in (folder / "snapshots").glob(f"{revision}*") if path.is_dir()]
    return found[0] if len(found) == 1 else None


def _remember(folder: Path, revision: str, commit: str) -> None:
    """Write what a branch names now where the library keeps it, for a later run without the hub.

    The library does so itself only where it downloads by the branch's name; files are fetched by
    commit here, so that all are of one.
    """
    if commit.startswith(revision) or ".." in Path(revision).parts:
        return
    ref = folder / "refs" / revision
    with contextlib.suppress(OSError):  # a cache that cannot be written is still of use
        if not ref.is_file() or ref.read_text() != commit:
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit)


def _get_range(repo: str, commit: str, name: str, offset: int, size: int) -> bytes:
    """One ranged request; never takes more than it asked for, whatever the server sends."""
    import huggingface_hub
    from huggingface_hub import utils

    library: Any = utils  # its types forget to export the three functions used here
    url = huggingface_hub.hf_hub_url(repo, name, revision=commit)
    headers = library.build_hf_headers()
    headers["Range"] = f"bytes={offset}-{offset + size - 1}"
    headers["Accept-Encoding"] = "identity"
    session: Any = library.get_session()
    if callable(getattr(session, "stream", None)):  # httpx, from huggingface_hub 1.0 on
        request = session.stream("GET", url, headers=headers, timeout=_TIMEOUT)
    else:
        request = session.get(url, headers=headers, timeout=_TIMEOUT, stream=True)
    with request as response:
        library.hf_raise_for_status(response)
        chunks = getattr(response, "iter_bytes", None) or response.iter_content
        skip = 0 if response.status_code == 206 else offset  # the range was ignored
        data = bytearray()
        for chunk in chunks(64 * 1024):
            data += chunk
            if len(data) >= skip + size:
                break
    return bytes(data[skip : skip + size])


def _errors() -> tuple[type[Exception], ...]:
    """What a request can raise: OSError, and the base class of the library's HTTP client, which
    is requests, httpx or another by the library's version."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)))


def _is_passing(error: Exception) -> bool:
    """Whether the trouble is the connection's or the server's own: another time may do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None or status == 429 or status >= 500


def _repo_folder(repo: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE).absolute() / repo_folder_name(
        repo_id=repo, repo_type="model"
    )


def _local_hint(reference: ModelReference, repo: str) -> str:
    """A hint where the name is that of a folder beside the plan."""
    beside = Path(reference.position.file).parent if reference.position else Path()
    if (beside / repo).exists():
        return f"; there is a local {beside / repo}: write ./{repo} for it"
    return ""


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
