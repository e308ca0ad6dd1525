"""What a schedule reads over a network: which bytes, in which order, through how large a buffer.

Remote bytes are read in *spans*: stretches of what tensors need, in the order in which they need
it, each asked for with one request. The buffer keeps a few spans for every model, of which some
are read ahead, and requests under way take their size twice: what an HTTP client gathers is
joined into one.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mergeengine.lazy.stored import Stored, StoredFile

LARGEST, SMALLEST = 8 << 20, 1 << 18  # bytes of a span
COMFORTABLE = 128 << 20  # the buffer takes no more than this where smaller spans will do
AHEAD = 2  # spans of each model read before they are asked for
MOST_WORKERS = 4  # more would wait for the network all the same, each at another span
MOST_REQUESTS = 8  # at a time
FIXED = 8 << 20  # connections, their event loop, and what it has of them in hand


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes ``start:stop`` of a file; ``number`` is its place among those of ``model``."""

    file: StoredFile
    start: int
    stop: int
    model: int
    number: int


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Bytes of a file that are needed one after the other; spans begin with ``number``."""

    file: StoredFile
    start: int
    stop: int
    number: int


@dataclass(frozen=True, slots=True)
class Transfers:
    """The spans of every remote model of a schedule, for so many workers at most."""

    span_bytes: int
    workers: int
    models: tuple[tuple[_Stretch, ...], ...]
    _places: Mapping[StoredFile, tuple[tuple[int, int, int], ...]] = field(repr=False)

    @property
    def kept(self) -> int:
        """Spans that are in memory at once."""
        return kept_of(len(self.models), self.workers)

    @property
    def ahead(self) -> int:
        """Spans of those that nobody has asked for yet, at most."""
        return len(self.models) * AHEAD

    @property
    def requests(self) -> int:
        """Requests under way at once."""
        return requests_of(len(self.models))

    @property
    def memory_bytes(self) -> int:
        """The most memory that the buffer takes."""
        return buffer_bytes(len(self.models), self.workers, self.span_bytes)

    def span(self, file: StoredFile, offset: int) -> Span | None:
        """The span in which a byte lies; None for what no tensor of the schedule needs."""
        places = self._places.get(file, ())
        at = bisect_right(places, offset, key=lambda place: place[0]) - 1
        if at < 0:
            return None
        _, model, index = places[at]
        stretch = self.models[model][index]
        if offset >= stretch.stop:
            return None
        return self._of(model, stretch, (offset - stretch.start) // self.span_bytes)

    def after(self, span: Span) -> Span | None:
        """The span that the same model needs next."""
        stretches = self.models[span.model]
        at = bisect_right(stretches, span.number, key=lambda each: each.number) - 1
        stretch = stretches[at]
        inside = span.number - stretch.number + 1
        if stretch.start + inside * self.span_bytes < stretch.stop:
            return self._of(span.model, stretch, inside)
        if at + 1 < len(stretches):
            return self._of(span.model, stretches[at + 1], 0)
        return None

    def _of(self, model: int, stretch: _Stretch, inside: int) -> Span:
        start = stretch.start + inside * self.span_bytes
        stop = min(start + self.span_bytes, stretch.stop)
        return Span(stretch.file, start, stop, model, stretch.number + inside)


def requests_of(models: int) -> int:
    """How many requests are under way at a time."""
    return min(MOST_REQUESTS, models * AHEAD)


def kept_of(models: int, workers: int) -> int:
    """How many spans are kept: of each model those read ahead, and that of each worker and what
    one has left of its last for another."""
    return models * (AHEAD + workers + 1)


def buffer_bytes(models: int, workers: int, span: int) -> int:
    """What the buffer takes for so many remote models."""
    return (kept_of(models, workers) + requests_of(models)) * span + FIXED


def transfers(tensors: Iterable[Stored], most: int, workers: int) -> Transfers | None:
    """The spans of remote ``tensors``, in the order in which they are read.

    They are as large as the comfortable buffer allows, or one of ``most`` bytes, but not smaller
    than ``SMALLEST``. None where nothing is remote.
    """
    stretches: dict[str, list[tuple[StoredFile, int, int]]] = {}
    owners: dict[StoredFile, str] = {}  # a file may belong to two models: its spans do not
    seen = set()
    for tensor in tensors:
        file, start, stop = tensor.file, tensor.offset, tensor.offset + tensor.nbytes
        if start == stop or (file, start) in seen:
            continue
        seen.add((file, start))
        found = stretches.setdefault(owners.setdefault(file, tensor.source), [])
        if found and found[-1][0] == file and found[-1][2] == start:
            found[-1] = file, found[-1][1], stop
        else:
            found.append((file, start, stop))
    if not stretches:
        return None
    size, workers = LARGEST, min(workers, MOST_WORKERS)
    most = min(COMFORTABLE, most)
    while size > SMALLEST and buffer_bytes(len(stretches), workers, size) > most:
        size //= 2
    models: list[tuple[_Stretch, ...]] = []
    places: dict[StoredFile, list[tuple[int, int, int]]] = {}
    for found in stretches.values():
        number, model = 0, list[_Stretch]()
        for file, start, stop in found:
            places.setdefault(file, []).append((start, len(models), len(model)))
            model.append(_Stretch(file, start, stop, number))
            number += -(-(stop - start) // size)
        models.append(tuple(model))
    return Transfers(
        size, workers, tuple(models), {f: tuple(sorted(at)) for f, at in places.items()}
    )
