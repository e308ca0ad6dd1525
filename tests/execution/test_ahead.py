"""The buffer of remote bytes: bounded, shared by workers, ahead of them, and honest on failure."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mergeengine.compiler.transfer import AHEAD, Transfers, transfers
from mergeengine.errors import CheckpointError, Interrupted
from mergeengine.execution.ahead import ReadAhead
from mergeengine.lazy.dtypes import BY_CODE
from mergeengine.lazy.stored import RemotePath, Stored, StoredFile

SIZE = 9 << 20
CONTENT = {name: random.Random(name).randbytes(SIZE) for name in "ab"}
FILES = {name: StoredFile(RemotePath(f"memory://{name}", name), SIZE) for name in CONTENT}


def spans(names: str = "ab", memory: int = 1 << 20) -> Transfers:
    stored = [Stored(n, "t", BY_CODE["U8"], (SIZE,), FILES[n], 0) for n in names]
    found = transfers(stored, memory, 1)
    assert found is not None
    return found


class Store:
    """Sends bytes, counts what is under way, and fails where it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.fails: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.under_way = self.most = 0
        self.lock = threading.Lock()

    def __call__(self, path: RemotePath, start: int, stop: int, size: int) -> bytes:
        with self.lock:
            self.asked.append((path.shown, start))
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        self.gate.wait(5)
        with self.lock:
            self.under_way -= 1
            if start in self.fails:
                self.fails.discard(start)
                raise CheckpointError(f"{path}: no answer")
        return CONTENT[path.shown][start:stop]


def read(buffer: ReadAhead, name: str, offset: int, size: int) -> bytes:
    into = bytearray(size)
    buffer.read_into(FILES[name], offset, memoryview(into))
    return bytes(into)


def test_what_is_needed_next_is_asked_for_before_it_is_needed() -> None:
    store, found = Store(), spans("a")
    buffer = ReadAhead(found, store)
    read(buffer, "a", 0, 10)
    buffer.close()
    assert sorted(store.asked) == [("a", n * found.span_bytes) for n in range(AHEAD + 1)]


def test_in_order_every_byte_is_fetched_once() -> None:
    store, found = Store(), spans()
    buffer = ReadAhead(found, store)
    for offset in range(0, SIZE, 100_000):
        for name in "ab":
            size = min(100_000, SIZE - offset)
            assert read(buffer, name, offset, size) == CONTENT[name][offset : offset + size]
    assert buffer.fetched == 2 * SIZE
    assert len(store.asked) == len(set(store.asked))
    assert store.most <= found.requests
    buffer.close()


@pytest.mark.parametrize("workers", [1, 5, 16])
def test_many_workers_anywhere_in_few_spans(workers: int) -> None:
    """More workers than spans, and no order at all: slower, but right, bounded and not stuck."""
    store, found = Store(), spans()
    buffer = ReadAhead(found, store)
    held = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            name, offset = chance.choice("ab"), chance.randrange(SIZE)
            size = min(chance.randrange(1, 700_000), SIZE - offset)
            assert read(buffer, name, offset, size) == CONTENT[name][offset : offset + size]
            held.append(len(buffer._kept))

    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work, seed) for seed in range(workers)]:
            done.result(60)
    assert max(held) <= found.kept
    buffer.close()


def test_a_failure_reaches_whoever_needs_the_bytes_and_only_them() -> None:
    store, found = Store(), spans("a")
    second = found.span_bytes
    store.fails = {second}
    buffer = ReadAhead(found, store)
    assert read(buffer, "a", 0, 10) == CONTENT["a"][:10]
    while buffer.fetched < AHEAD * second:  # all but the one that fails
        threading.Event().wait(0.001)
    # What was read ahead in vain is asked for once more.
    assert read(buffer, "a", second, 10) == CONTENT["a"][second : second + 10]
    store.fails = {8 * second}
    with pytest.raises(CheckpointError, match="no answer"):
        read(buffer, "a", 8 * second, 10)
    assert read(buffer, "a", 8 * second, 10) == CONTENT["a"][8 * second : 8 * second + 10]
    buffer.close()


def test_closing_does_not_wait_for_what_is_only_planned() -> None:
    store, found = Store(), spans()
    store.gate.clear()
    buffer = ReadAhead(found, store)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(read, buffer, name, 0, 10) for name in "ab"]
        while store.most < 2:
            threading.Event().wait(0.001)
        store.gate.set()
        assert [each.result(5) for each in waiting] == [CONTENT["a"][:10], CONTENT["b"][:10]]
        buffer.close()
    assert len(store.asked) <= 2 * (AHEAD + 1)


def test_nobody_waits_after_a_stop() -> None:
    store = Store()
    store.gate.clear()
    buffer = ReadAhead(spans(), store)
    with ThreadPoolExecutor(20) as pool:
        waiting = [pool.submit(read, buffer, "ab"[n % 2], n << 18, 10) for n in range(20)]
        while store.most < 2:
            threading.Event().wait(0.001)
        buffer.stop()
        for each in waiting:
            with pytest.raises(Interrupted):
                each.result(5)
    buffer.close()
    store.gate.set()
