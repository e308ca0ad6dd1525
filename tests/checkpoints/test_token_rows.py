"""Which token each row stands for, and the pieces of sentencepiece models."""

from contextlib import suppress
from pathlib import Path

import pytest
from companion_models import make_model, tokenizer_json
from hypothesis import given
from hypothesis import strategies as st

from mergeengine.checkpoints.sentencepiece import pieces
from mergeengine.checkpoints.token_rows import token_dimension, token_rows, vocabulary_rows
from mergeengine.checkpoints.vocabulary import read_vocabulary, tokens


def varint(number: int) -> bytes:
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def model_proto(texts: list[str]) -> bytes:
    """As sentencepiece writes it: each piece with its score and type, then how it was trained."""
    score = varint(2 << 3 | 5) + b"\0\0\x80\xbf"
    kind = varint(3 << 3) + varint(2)
    listed = b"".join(field(1, field(1, text.encode()) + score + kind) for text in texts)
    return listed + field(2, varint(4 << 3) + varint(32_000)) + field(3, field(1, b"nmt_nfkc"))


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=200), max_size=30))
def test_pieces_come_in_order(texts: list[str]) -> None:
    assert list(pieces(model_proto(texts))) == texts


@given(st.binary(max_size=60))
def test_anything_else_is_an_error_or_nothing(data: bytes) -> None:
    with suppress(ValueError):
        assert all(isinstance(piece, str) for piece in pieces(data))


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model"])
def test_a_sentencepiece_model_alone(tmp_path: Path, name: str) -> None:
    texts = ["<unk>", "<s>", "</s>", "▁a", '"', "\\"]
    added = {"added_tokens.json": {"<pad>": 6}}
    model = make_model(tmp_path / "m", {name: model_proto(texts), **added})
    assert dict(tokens(model)) == {text: n for n, text in enumerate([*texts, "<pad>"])}
    assert read_vocabulary(model).size == 7


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "spm.model"])
def test_models_whose_ids_are_not_their_pieces_places(tmp_path: Path, name: str) -> None:
    model = make_model(tmp_path / "m", {name: model_proto(["<unk>", "a"])})
    assert token_rows(model, 8) is None


def test_rows_of_tokens(tmp_path: Path) -> None:
    one = make_model(
        tmp_path / "one", {"tokenizer.json": tokenizer_json(["a", "b", "c"], {"<x>": 5, "<y>": 90})}
    )
    two = make_model(tmp_path / "two", {"vocab.txt": "b\na\n"})
    rows, others = token_rows(one, 8), token_rows(two, 8)
    assert rows is not None
    assert others is not None
    assert [bool(row) for row in rows] == [True, True, True, False, False, True, False, False]
    assert (rows[0], rows[1]) == (others[1], others[0])
    whole = token_rows(one)
    assert whole is not None
    assert len(whole) == 91
    assert vocabulary_rows(one) == 8
    assert token_rows(make_model(tmp_path / "none"), 8) is None


@pytest.mark.parametrize(
    ("name", "shape", "dimension"),
    [
        ("model.embed_tokens.weight", (32, 4), 0),
        ("transformer.wte.weight", (32, 4), 0),
        ("lm_head.weight", (32, 4), 0),
        ("lm_head.bias", (32,), 0),
        ("cls.predictions.bias", (32,), 0),
        ("cls.predictions.decoder.bias", (32,), 0),
        ("vocab_projector.bias", (32,), 0),
        ("final_logits_bias", (1, 32), 1),
        ("lm_head.weight", (2, 4), None),  # a head of two classes
        ("model.layers.0.output.weight", (32, 32), None),
        ("model.norm.weight", (32,), None),
        ("classifier.bias", (32,), None),
    ],
)
def test_what_has_an_entry_for_each_token(
    name: str, shape: tuple[int, ...], dimension: int | None
) -> None:
    assert token_dimension(name, shape, 32) == dimension
