"""A checkpoint: names to places in files, with its config; opened without reading tensor data."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Union

from mergeengine.checkpoints.documents import listing, parse_object, shown
from mergeengine.checkpoints.fingerprint import sampled_digest
from mergeengine.checkpoints.folder import (
    ADAPTER_CONFIG,
    WHOLE,
    LocalFolder,
    Weights,
    find_adapter,
    find_weights,
)
from mergeengine.checkpoints.hub import HubModel
from mergeengine.checkpoints.quantised import dequantised
from mergeengine.checkpoints.reading import opened
from mergeengine.checkpoints.weight_file import SUFFIXES, WeightFile, read_weight_file
from mergeengine.errors import CheckpointError
from mergeengine.lazy.stored import RemotePath, Stored, StoredFile
from mergeengine.lazy.weight import Weight, leaves
from mergeengine.values.references import ModelReference, parse_reference

if TYPE_CHECKING:
    from mergeengine.checkpoints.remote_folder import RemoteFolder

Kind = Literal["model", "stored", "adapter", "either", "none"]
_Store = Union[LocalFolder, HubModel, "RemoteFolder"]

_REQUESTS = 8  # to the hub or a store at a time


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that the tokenizer of an output has beyond the model's whose files it is made of.

    ``settings`` say how it is found in a text, as a tokenizer.json has them; None where it is an
    ordinary token of another vocabulary, which is not looked for before others.
    """

    text: str
    number: int
    settings: Mapping[str, bool] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A model on this machine, on the hub or at a URL, as its headers describe it.

    `tensors` are in file order: files by name, offsets ascending. Most are `Stored` as they are;
    others are `Derived` from what is. `folder` is None for a single file and for what is at a URL,
    and for a hub model the snapshot in the local cache, which exists once something of it was
    fetched. `revision` is the commit of a hub model. `notes` and `warnings` are sentences about how
    its files were read. An adapter alone has `adapter`, its adapter_config.json. Put onto its base
    it has the tensors and config of the model that comes out, and `parts`: the adapter and the
    base, which have the files. So has a stack of layers: `parts` are the models they are of.
    `added_tokens` are known beside those of its files.
    """

    reference: ModelReference
    tensors: Mapping[str, Weight]
    files: tuple[StoredFile, ...]
    config: Mapping[str, Any] | None = None
    folder: Path | None = None
    revision: str | None = None
    adapter: Mapping[str, Any] | None = None
    parts: tuple["Checkpoint", ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    added_tokens: tuple[AddedToken, ...] = ()
    _headers: Mapping[StoredFile, bytes] = field(default_factory=dict, repr=False)
    _store: "_Store | None" = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.reference.text

    @property
    def beside(self) -> "Checkpoint":
        """The model that has the files beside these weights: of an adapter its base."""
        return self.parts[1].beside if self.reference.adapts is not None else self

    @property
    def places(self) -> tuple["Checkpoint", ...]:
        """What has files of its own: the model, or its parts and theirs, each once."""
        if not self.parts:
            return (self,)
        return tuple(dict.fromkeys(each for part in self.parts for each in part.places))

    def companions(self) -> tuple[str, ...]:
        """The names of all files beside the weights: config, tokenizer, code, licence..."""
        return self._store.companions() if self._store is not None else ()

    def companion(self, name: str) -> Path | None:
        """The path of such a file, which is fetched now if need be; None if there is none."""
        return self._store.companion(name) if self._store is not None else None

    def missing_files(self, files: Iterable[StoredFile]) -> tuple[StoredFile, ...]:
        """Those of `files` that are this model's and still to be downloaded, `size` bytes each."""
        if self.parts:
            files = tuple(files)
            return tuple(file for part in self.parts for file in part.missing_files(files))
        if not isinstance(self._store, HubModel):
            return ()
        own = set(self.files)
        return tuple(file for file in files if file in own and not file.local.exists())

    def fetch(self, files: Iterable[StoredFile]) -> None:
        """Download those of `files` of a hub model that are not on this machine.

        Local models have them all, and remote ones are read where they lie.
        """
        if self.parts:
            files = tuple(files)
            for part in self.parts:
                part.fetch(files)
        elif isinstance(self._store, HubModel):
            for file in self.missing_files(files):
                self._store.fetch(file)

    def stored(self) -> Iterator[Stored]:
        """What of the files takes part in the tensors, in file order; each once."""
        plain = [tensor for tensor in self.tensors.values() if isinstance(tensor, Stored)]
        if len(plain) == len(self.tensors):  # in this order already
            yield from plain
            return
        number = {file: place for place, file in enumerate(self.files)}
        found = dict.fromkeys(leaf for tensor in self.tensors.values() for leaf in leaves(tensor))
        yield from sorted(found, key=lambda leaf: (number[leaf.file], leaf.offset))

    def identity(self) -> tuple[tuple[str, int, int, int], ...]:
        """Path, size, mtime and inode of each file of weights, as its header was read.

        Differs when an input is replaced. A hub file that is not fetched yet has zeros, a remote
        one its version beside its URL.
        """
        return tuple((_place(f), f.size, *(f.state or (0, 0))) for f in self.files)

    def fingerprint(self) -> str:
        """What this checkpoint contains, cheaply and without facts of this machine.

        A hub model is its repository and commit. Otherwise this is a digest of the config, the
        headers and a *sample* of the data (see `mergeengine.checkpoints.fingerprint`).
        """
        if self.revision is not None:
            return f"{self.reference.repo}@{self.revision}"
        return sampled_digest(
            self._headers,
            self.stored(),
            config=self.companion("config.json" if self.adapter is None else ADAPTER_CONFIG),
            in_folder=self._store is not None,
        )


def open_checkpoint(
    reference: ModelReference | str | Path,
    *,
    pinned: str | None = None,
    offline: bool = False,
    weights: Kind = "model",
) -> Checkpoint:
    """Open a model by its headers; nothing of a tensor's data is read or downloaded.

    A text is a local path where it begins with ``./``, ``../``, ``/`` or ``~``, a URL where it has
    ``://``, else a hub model (``org/name[@revision]``). `pinned` is the commit to take of a hub
    model instead of what its revision now names; `offline` takes it from the local cache. `weights`
    are those of a whole "model", of an "adapter", or of "either"; "stored" are a model's tensors as
    they lie in its files, whatever they mean; with "none" only what lies beside them is opened, and
    a folder that has none (a tokenizer alone) will do.
    """
    reference = _as_reference(reference)
    if reference.url is not None:
        return _open_remote(reference, reference.url, offline, weights)
    if reference.path is None:
        return _open_hub(reference, pinned, offline, weights)
    try:
        path = reference.path.expanduser().absolute()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError) as error:  # no such home folder, no right to look, ...
        raise CheckpointError(f"{reference.text} cannot be opened: {error}") from error
    if is_folder:
        return _open_folder(reference, path, weights)
    if is_file and weights != "adapter":
        return _open_file(reference, path)
    raise CheckpointError(f"{reference.text}: there is no folder or file {path}")


_NONE = Weights(())
_OFFLINE = (
    "they are not in the local cache, and the hub is not reachable or offline mode is on: run once "
    "with a connection, or download the whole model"
)
_INCOMPLETE = "copy or download them again"


def _open_folder(reference: ModelReference, path: Path, kind: Kind) -> Checkpoint:
    folder = LocalFolder(path)

    def part(name: str) -> WeightFile:
        return _local_part(folder.file(name), reference.text)

    return _open_store(reference, str(path), folder, folder.names(), kind, part, folder=path)


def _open_file(reference: ModelReference, path: Path) -> Checkpoint:
    return _of_one_file(reference, str(path), path.name, _local_part(path, reference.text))


def _open_hub(
    reference: ModelReference, pinned: str | None, offline: bool, kind: Kind
) -> Checkpoint:
    model = HubModel.resolve(reference, pinned=pinned, offline=offline)
    way_out = _OFFLINE if model.offline else "the repository is incomplete"

    def part(name: str) -> WeightFile:
        file = model.stored_file(name)
        if file.local.exists():
            return _local_part(file.local, reference.text)
        return read_weight_file(model.reader(name), file, reference.text, f"{model.label}: {name}")

    opened = _open_store(
        reference, model.label, model, model.names(), kind, part, way_out, requests=_REQUESTS
    )
    return replace(opened, folder=model.snapshot, revision=model.commit)


def _open_remote(reference: ModelReference, url: str, offline: bool, kind: Kind) -> Checkpoint:
    # Not at the top: a run that reads nothing remote does without it.
    from mergeengine.checkpoints.remote import load_library, reads_of, stored_file
    from mergeengine.checkpoints.remote_folder import RemoteFolder

    label = reference.text
    if offline:
        raise CheckpointError(
            f"{label}: a URL is read where it lies, and offline mode is on: download the model and "
            "give its local path"
        )
    load_library(url)

    def part(url: str, label: str) -> WeightFile:
        file = stored_file(url)
        return read_weight_file(reads_of(file), file, reference.text, label)

    name = url.partition("?")[0].rpartition("/")[2]
    if name.endswith(SUFFIXES):
        return _of_one_file(reference, label, name, part(url, label))
    store = RemoteFolder(url)
    return _open_store(
        reference,
        label,
        store,
        store.names(),
        kind,
        lambda name: part(f"{url}/{name}", f"{label}/{name}"),
        requests=_REQUESTS,
    )


def _open_store(
    reference: ModelReference,
    label: str,
    store: "_Store",
    names: Collection[str],
    kind: Kind,
    part: Callable[[str], WeightFile],
    way_out: str = _INCOMPLETE,
    *,
    folder: Path | None = None,
    requests: int = 1,
) -> Checkpoint:
    """A model whose files have these names; ``part`` reads the header of one of weights."""
    if kind == "either":
        alone = ADAPTER_CONFIG in names and not any(name in names for name in WHOLE)
        kind = "adapter" if alone else "model"
    if kind == "none":
        weights = _NONE
    elif kind == "adapter":
        weights = find_adapter(label, names)
    else:
        weights = find_weights(label, names, store.read, way_out)
    if requests > 1:
        with ThreadPoolExecutor(requests) as pool:  # one round trip each: mostly waiting
            parts = list(pool.map(part, weights.files))
    else:
        parts = [part(name) for name in weights.files]
    config = None if kind == "adapter" else _config(label, store, names)
    stored = _gather(label, weights, parts)
    tensors, notes = dequantised(label, config if kind == "model" else None, stored)
    return Checkpoint(
        reference=reference,
        tensors=tensors,
        files=tuple(part.file for part in parts),
        config=config,
        folder=folder,
        adapter=_config(label, store, names, ADAPTER_CONFIG) if kind == "adapter" else None,
        notes=(*_notes(label, parts), *notes),
        _headers=_headers(parts),
        _store=store,
    )


def _of_one_file(reference: ModelReference, label: str, name: str, part: WeightFile) -> Checkpoint:
    return Checkpoint(
        reference=reference,
        tensors=_gather(label, Weights((name,)), [part]),
        files=(part.file,),
        notes=part.notes,
        _headers=_headers([part]),
    )


def _headers(parts: Iterable[WeightFile]) -> Mapping[StoredFile, bytes]:
    return {part.file: part.header for part in parts}


def _place(file: StoredFile) -> str:
    version = file.path.version if isinstance(file.path, RemotePath) else ""
    return f"{file.path} {version}" if version else str(file.path)


def _config(
    label: str, store: "_Store", names: Collection[str], name: str = "config.json"
) -> Mapping[str, Any] | None:
    if name not in names:
        return None
    return parse_object(store.read(name), f"{label}: {name}")


def _local_part(path: Path, source: str) -> WeightFile:
    file = _stored_file(path)
    with opened(path) as read:
        return read_weight_file(read, file, source, str(path))


def _notes(label: str, parts: Iterable[WeightFile]) -> tuple[str, ...]:
    return tuple(f"{label}: {note}" for part in parts for note in part.notes)


def _gather(label: str, weights: Weights, parts: Iterable[WeightFile]) -> Mapping[str, Weight]:
    """The tensors of all files as one mapping, which must be what the index says."""
    tensors: dict[str, Weight] = {}
    place: dict[str, str] = {}
    for part in parts:
        name = part.file.path.name
        for tensor in part.weights:
            if tensor.name in tensors:
                raise CheckpointError(
                    f"{label}: the tensor {shown(tensor.name)} is in two files, "
                    f"{place[tensor.name]} and {name}"
                )
            tensors[tensor.name] = tensor
            place[tensor.name] = name
    if weights.weight_map is not None and weights.weight_map != place:
        raise CheckpointError(_index_differs(label, weights.weight_map, place))
    if not tensors and weights is not _NONE:
        raise CheckpointError(f"{label}: there is not one tensor in {listing(weights.files)}")
    return MappingProxyType(tensors)


def _index_differs(label: str, weight_map: Mapping[str, str], place: Mapping[str, str]) -> str:
    lacking = [n for n in weight_map if n not in place]
    unnamed = [n for n in place if n not in weight_map]
    elsewhere = [n for n in weight_map if n in place and place[n] != weight_map[n]]
    lines = [f"{label}: the index and the files of weights do not agree:"]
    if lacking:
        lines.append(f"  named by the index, but in no file: {listing(lacking)}")
    if unnamed:
        lines.append(f"  in a file, but not named by the index: {listing(unnamed)}")
    if elsewhere:
        lines.append(f"  in another file than the index says: {listing(elsewhere)}")
    lines.append("The files are of different versions or incomplete: copy or download them again.")
    return "\n".join(lines)


def _stored_file(path: Path) -> StoredFile:
    """A local file as it is now, before its header is read: what is read later must be this."""
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return StoredFile(path, status.st_size, (status.st_mtime_ns, status.st_ino))


def _as_reference(reference: ModelReference | str | Path) -> ModelReference:
    if isinstance(reference, ModelReference):
        return reference
    if isinstance(reference, Path):
        return ModelReference(str(reference), path=reference)
    try:
        return parse_reference(reference, Path())
    except ValueError as error:
        raise CheckpointError(str(error)) from None
