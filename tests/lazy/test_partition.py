"""Boxes of flat ranges cover exactly the range, in order."""

from itertools import product
from math import prod

from hypothesis import given
from hypothesis import strategies as st

from mergeengine.lazy.partition import CHUNK, boxes, chunk_count


@given(st.data())
def test_boxes_are_the_range(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 5), max_size=4)))
    start = data.draw(st.integers(0, prod(shape)))
    stop = data.draw(st.integers(start, prod(shape)))
    found = []
    for box in boxes(shape, start, stop):
        for index in product(*(range(low, high) for low, high in box)):
            flat = 0
            for position, size in zip(index, shape, strict=True):
                flat = flat * size + position
            found.append(flat)
    assert found == list(range(start, stop))
    assert sum(1 for _ in boxes(shape, start, stop)) <= max(1, 2 * len(shape) - 1)


def test_an_empty_tensor_is_counted_once() -> None:
    assert [chunk_count(n) for n in (0, 1, CHUNK, CHUNK + 1)] == [1, 1, 1, 2]
