"""What a journal says after any way of dying."""

from pathlib import Path

import pytest

from mergeengine.output.journal import Claim, Journal, chunk_digest, read_claims, read_key

A, B = chunk_digest(b"a"), chunk_digest(b"b")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def write(path: Path, key: str, *records: tuple[int, int, list[bytes]]) -> None:
    journal = Journal(path, key)
    for record in records:
        journal.record(*record)
    journal.close()


def test_what_is_recorded_is_claimed(path: Path) -> None:
    write(path, "k", (3, 0, [A, B]), (4, 7, [A]))
    assert read_key(path) == "k"
    assert list(read_claims(path)) == [Claim(3, 0, A), Claim(3, 1, B), Claim(4, 7, A)]


def test_another_key_starts_over(path: Path) -> None:
    write(path, "k", (3, 0, [A]))
    write(path, "other", (1, 0, [B]))
    assert read_key(path) == "other"
    assert list(read_claims(path)) == [Claim(1, 0, B)]


def test_the_same_key_goes_on(path: Path) -> None:
    write(path, "k", (3, 0, [A]))
    write(path, "k", (3, 1, [B]))
    assert list(read_claims(path)) == [Claim(3, 0, A), Claim(3, 1, B)]


@pytest.mark.parametrize("cut", range(1, 75))
def test_a_cut_off_line_is_no_claim_and_spoils_no_later_one(path: Path, cut: int) -> None:
    write(path, "k", (3, 0, [A]), (4, 0, [B]))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert len(whole) == len(b"mergeengine journal 2 k\n") + 2 * 37
    kept = [Claim(3, 0, A)] if cut < 38 else []
    assert list(read_claims(path)) == kept
    # Where only the line's end is missing, the next run's first newline completes a true claim.
    completed = {1: [Claim(4, 0, B)], 38: [Claim(3, 0, A)]}.get(cut, [])
    write(path, "k", (5, 0, [B]))
    assert list(read_claims(path)) == [*kept, *completed, Claim(5, 0, B)]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe garbage",
        b"1 2 zz",
        b"1 2 abcd",
        b"-1 0 " + A.hex().encode(),
        b"1 -2 " + A.hex().encode(),
        b"x y " + A.hex().encode(),
        b"1 2",
        b"",
    ],
)
def test_garbage_claims_nothing(path: Path, line: bytes) -> None:
    write(path, "k", (3, 0, [A]))
    with path.open("ab") as file:
        file.write(line + b"\n")
    assert list(read_claims(path)) == [Claim(3, 0, A)]


@pytest.mark.parametrize("content", [b"", b"something else\n", b"mergeengine journal 2 k", b"\xff"])
def test_what_is_no_journal_has_no_key(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert read_key(path) is None


def test_no_journal(path: Path) -> None:
    assert read_key(path) is None
    assert list(read_claims(path)) == []


def test_notes_come_back_with_their_chunks(path: Path) -> None:
    journal = Journal(path, "k")
    journal.record(3, 0, [A, B, A], ['{"x":1}', ""])
    journal.record(4, 0, [B], ["ab" * 20])
    journal.close()
    assert list(read_claims(path)) == [
        Claim(3, 0, A, '{"x":1}'),
        Claim(3, 1, B),
        Claim(3, 2, A),
        Claim(4, 0, B, "ab" * 20),
    ]


@pytest.mark.parametrize("cut", range(1, 60))
def test_no_chunk_is_claimed_without_its_note(path: Path, cut: int) -> None:
    journal = Journal(path, "k")
    note = '{"sums":[1.25e-07,0.5]}'
    journal.record(3, 0, [A], [note])
    journal.close()
    path.write_bytes(path.read_bytes()[:-cut])
    Journal(path, "k").close()  # completes the line
    claims = list(read_claims(path))
    assert claims == ([Claim(3, 0, A, note)] if cut == 1 else [])
