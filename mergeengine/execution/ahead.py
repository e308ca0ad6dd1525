"""Remote files in bounded memory: spans of them, read ahead and kept while they are of use."""

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Condition, Thread

from mergeengine.checkpoints.remote import read_range
from mergeengine.compiler.transfer import AHEAD, Span, Transfers
from mergeengine.errors import Interrupted
from mergeengine.lazy.stored import RemotePath, StoredFile

Fetch = Callable[[RemotePath, int, int, int], bytes]
"""``fetch(path, start, stop, size)``: those bytes of a file of ``size`` bytes."""


class _Kept:
    """A span that is in memory or on its way.

    ``used`` is False until somebody asked for it; ``left`` are the bytes that nobody took yet.
    """

    __slots__ = ("data", "left", "used", "users")

    def __init__(self, data: "Future[bytes]", left: int) -> None:
        self.data = data
        self.left = left
        self.users = 0
        self.used = False


class ReadAhead:
    """The buffer through which workers read remote files; safe from many threads.

    It holds ``transfers.kept`` spans at most, those under way included. Whoever needs a span that
    is not there takes the place of one that was read to its end, or else of the one that was used
    longest ago, and waits for one if all are in use. The spans that its model needs next are asked
    for where that costs no other such.
    """

    def __init__(self, transfers: Transfers, fetch: Fetch = read_range) -> None:
        self.fetched = 0
        self._transfers = transfers
        self._fetch = fetch
        self._kept: dict[Span, _Kept] = {}  # the one used last comes last
        self._changed = Condition()
        self._stopped = self._closed = False
        self._asked: SimpleQueue[tuple[Span, Future[bytes]] | None] = SimpleQueue()
        # Daemons: a process that is stopped does not wait for an answer that may never come.
        self._threads = [
            Thread(target=self._fetch_spans, daemon=True) for _ in range(transfers.requests)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ask for nothing more."""
        self._closed = True
        for _ in self._threads:
            self._asked.put(None)
        for thread in self._threads if not self._stopped else ():
            thread.join()
        self._kept.clear()

    def stop(self) -> None:
        """Let nobody wait any longer: who does meets Interrupted."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def read_into(self, file: StoredFile, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from byte ``offset``, which lies in a tensor of the schedule."""
        done = 0
        while done < len(buffer):
            span = self._transfers.span(file, offset + done)
            assert span is not None, "bytes that the schedule does not name"
            kept = self._take(span)
            count = 0
            try:
                data = self._arrived(kept.data)
                start = offset + done - span.start
                count = min(len(buffer) - done, span.stop - span.start - start)
                buffer[done : done + count] = memoryview(data)[start : start + count]
                done += count
            finally:
                self._leave(kept, count)

    def _take(self, span: Span) -> _Kept:
        with self._changed:
            while (kept := self._kept.get(span)) is None:
                if self._make_room():
                    kept = self._ask(span)
                    break
                self._wait(lambda: span in self._kept or self._has_room())
            if kept.data.done() and kept.data.exception():
                # It was read ahead in vain: this time somebody waits for it.
                kept = self._ask(span)
            kept.users += 1
            kept.used = True
            self._kept[span] = self._kept.pop(span)
            following = span
            for _ in range(AHEAD):
                after = self._transfers.after(following)
                if after is None:
                    break
                following = after
                if following not in self._kept and self._may_read_ahead():
                    self._ask(following)
            return kept

    def _leave(self, kept: _Kept, taken: int) -> None:
        with self._changed:
            kept.left -= taken
            kept.users -= 1
            self._changed.notify_all()

    def _may_read_ahead(self) -> bool:
        """Whether there is room for a span that nobody waits for, without loss of another such."""
        waiting = sum(not kept.used for kept in self._kept.values())
        return waiting < self._transfers.ahead and self._make_room()

    def _make_room(self) -> bool:
        """Whether one more span may be kept, letting go of one if need be."""
        if len(self._kept) < self._transfers.kept:
            return True
        idle = self._idle()
        if not idle:
            return False
        # The one used longest ago comes first.
        del self._kept[min(idle, key=lambda span: self._worth(self._kept[span]))]
        return True

    def _has_room(self) -> bool:
        return len(self._kept) < self._transfers.kept or bool(self._idle())

    def _idle(self) -> list[Span]:
        return [span for span, of in self._kept.items() if of.data.done() and not of.users]

    @staticmethod
    def _worth(kept: _Kept) -> int:
        return 2 if not kept.used else 1 if kept.left > 0 else 0

    def _ask(self, span: Span) -> _Kept:
        kept = self._kept[span] = _Kept(Future(), span.stop - span.start)
        self._asked.put((span, kept.data))
        return kept

    def _arrived(self, data: "Future[bytes]") -> bytes:
        """The bytes of a span, once they are there."""
        with self._changed:
            self._wait(data.done)
        return data.result()

    def _wait(self, until: Callable[[], bool]) -> None:
        self._changed.wait_for(lambda: self._stopped or until())
        if self._stopped:
            raise Interrupted("stopped; run the same command again to go on from here")

    def _fetch_spans(self) -> None:
        while (asked := self._asked.get()) is not None:
            if not (self._closed or self._stopped):
                self._fetch_span(*asked)
            del asked  # a thread that waits holds no bytes

    def _fetch_span(self, span: Span, future: "Future[bytes]") -> None:
        assert isinstance(span.file.path, RemotePath)
        try:
            future.set_result(self._fetch(span.file.path, span.start, span.stop, span.file.size))
        except BaseException as error:  # handed to whoever waits for it
            future.set_exception(error)
        with self._changed:
            self.fetched += 0 if future.exception() else span.stop - span.start
            self._changed.notify_all()
