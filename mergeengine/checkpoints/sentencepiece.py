"""The pieces of a sentencepiece model, read without the library.

The file is a protocol buffer: field 1 of the model, repeated, is a piece, whose own field 1 is its
text; the place of a piece is its id (sentencepiece_model.proto).
"""

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10


def pieces(data: bytes) -> Iterator[str]:
    """The pieces in the order of their ids. ValueError where ``data`` is no such file."""
    for field, start, stop in _fields(data, 0, len(data)):
        if field == (1, _BYTES):
            yield next(
                (
                    data[first:last].decode(errors="strict")
                    for inner, first, last in _fields(data, start, stop)
                    if inner == (1, _BYTES)
                ),
                "",
            )


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[tuple[int, int], int, int]]:
    """Number and wire type of each field, and where its value begins and ends."""
    while position < end:
        tag, position = _varint(data, position, end)
        number, wire = tag >> 3, tag & 7
        start = position
        if wire == _VARINT:
            _, position = _varint(data, position, end)
        elif wire == _BYTES:
            size, start = _varint(data, position, end)
            position = start + size
        elif wire in (_FIXED32, _FIXED64):
            position += 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"no wire type {wire} at byte {position}")
        if number == 0 or position > end:
            raise ValueError(f"no field at byte {start}")
        yield (number, wire), start, position


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """The number at ``position``, and where the next thing begins."""
    value = 0
    for count in range(_LONGEST_VARINT):
        if position + count >= end:
            break
        byte = data[position + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, position + count + 1
    raise ValueError(f"no number at byte {position}")
