"""Spans of remote files: every byte that is needed once, in the order in which it is needed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeengine.compiler.transfer import (
    COMFORTABLE,
    LARGEST,
    MOST_WORKERS,
    SMALLEST,
    Span,
    Transfers,
    buffer_bytes,
    transfers,
)
from mergeengine.lazy.dtypes import FLOAT32
from mergeengine.lazy.stored import RemotePath, Stored, StoredFile

GIB = 1 << 30


def remote(name: str, size: int = GIB) -> StoredFile:
    return StoredFile(RemotePath(f"memory://{name}", f"memory://{name}"), size)


def tensor(source: str, file: StoredFile, offset: int, elements: int) -> Stored:
    return Stored(source, f"{file.path}{offset}", FLOAT32, (elements,), file, offset)


def chain(found: Transfers, first: Span) -> list[Span]:
    spans: list[Span] = [first]
    while (after := found.after(spans[-1])) is not None:
        spans.append(after)
    return spans


def test_nothing_remote() -> None:
    assert transfers([], GIB, 2) is None


@given(
    sizes=st.lists(st.integers(1, 3_000_000), min_size=1, max_size=12),
    order=st.randoms(),
    gaps=st.booleans(),
)
def test_spans_are_what_tensors_need_in_their_order(sizes, order, gaps) -> None:  # type: ignore[no-untyped-def]
    files = [remote("a"), remote("b")]
    tensors, at = [], [100, 100]
    for number, size in enumerate(sizes):
        file = number % 2
        tensors.append(tensor("m", files[file], at[file], size))
        at[file] += 4 * size + (64 if gaps else 0)
    order.shuffle(tensors)
    found = transfers([*tensors, *tensors], 8 << 20, 2)
    assert found is not None
    begin = found.span(tensors[0].file, tensors[0].offset)
    assert begin is not None
    spans = chain(found, begin)
    assert [span.number for span in spans] == list(range(len(spans)))
    assert all(0 < span.stop - span.start <= found.span_bytes for span in spans)
    assert sum(span.stop - span.start for span in spans) == sum(t.nbytes for t in tensors)
    firsts = [found.span(t.file, t.offset) for t in tensors]
    numbers = [span.number for span in firsts if span is not None]
    assert numbers == sorted(numbers)
    for each in tensors:
        for offset in {each.offset, each.offset + each.nbytes - 1}:
            span = found.span(each.file, offset)
            assert span in spans
            assert span.start <= offset < span.stop
    assert found.span(files[0], 99) is None
    assert found.span(files[0], at[0]) is None


def test_a_file_of_two_models_has_one_set_of_spans() -> None:
    file = remote("shared")
    both = [tensor("a", file, 0, 10), tensor("b", file, 0, 10), tensor("b", file, 40, 10)]
    found = transfers([*both, tensor("a", file, 80, 10)], GIB, 2)
    assert found is not None
    assert len(found.models) == 1
    assert found.span(file, 0) == found.span(file, 119)


@pytest.mark.parametrize("workers", [1, 2, 4, 64])
def test_the_buffer_stays_in_its_bounds(workers: int) -> None:
    for models in (1, 2, 3, 10, 21):
        tensors = [tensor(f"m{n}", remote(f"f{n}"), 0, 1 << 26) for n in range(models)]
        for most in (-1, 20 << 20, 80 << 20, 1 << 40):
            found = transfers(tensors, most, workers)
            assert found is not None
            assert found.workers == min(workers, MOST_WORKERS)
            assert found.memory_bytes == buffer_bytes(models, found.workers, found.span_bytes)
            within = found.memory_bytes <= min(COMFORTABLE, most)
            assert within or found.span_bytes == SMALLEST
            assert SMALLEST <= found.span_bytes <= LARGEST
            assert found.kept >= models * found.workers + found.ahead


def test_requests_are_large_where_few_models_are_remote() -> None:
    assert buffer_bytes(1, MOST_WORKERS, LARGEST) <= COMFORTABLE
    assert buffer_bytes(3, MOST_WORKERS, LARGEST // 2) <= COMFORTABLE
