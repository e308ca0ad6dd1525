"""Remote files in bounded memory: spans of them, read ahead and kept while they are of use."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition

from mergeengine.checkpoints.remote import read_range
from mergeengine.compiler.transfer import AHEAD, Span, Transfers
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
        self._pool = ThreadPoolExecutor(transfers.requests, "read-ahead")

    def close(self) -> None:
        """Ask for nothing more."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._kept.clear()

    def read_into(self, file: StoredFile, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from byte ``offset``, which lies in a tensor of the schedule."""
        done = 0
        while done < len(buffer):
            span = self._transfers.span(file, offset + done)
            assert span is not None, "bytes that the schedule does not name"
            kept = self._take(span)
            count = 0
            try:
                data = kept.data.result()
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
                self._changed.wait()
            if kept.data.done() and not kept.data.cancelled() and kept.data.exception():
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
        idle = [span for span, of in self._kept.items() if of.data.done() and not of.users]
        if not idle:
            return False
        # The one used longest ago comes first.
        del self._kept[min(idle, key=lambda span: self._worth(self._kept[span]))]
        return True

    @staticmethod
    def _worth(kept: _Kept) -> int:
        return 2 if not kept.used else 1 if kept.left > 0 else 0

    def _ask(self, span: Span) -> _Kept:
        kept = self._kept[span] = _Kept(self._pool.submit(self._get, span), span.stop - span.start)
        kept.data.add_done_callback(self._arrived)
        return kept

    def _get(self, span: Span) -> bytes:
        assert isinstance(span.file.path, RemotePath)
        data = self._fetch(span.file.path, span.start, span.stop, span.file.size)
        with self._changed:
            self.fetched += len(data)
        return data

    def _arrived(self, _: "Future[bytes]") -> None:
        with self._changed:
            self._changed.notify_all()
