import json
import tracemalloc

import pytest
from companion_models import make_model, tokenizer_json, write_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergeengine.checkpoints.vocabulary import Vocabulary, read_vocabulary, token_ids, tokens
from mergeengine.errors import CheckpointError

ANYTHING = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ['"', "\\", '\\"', "vocab", "model", "added_tokens", '":1,', "}", "{[", "<|eot_id|>", "▁é中😀"]
)


@pytest.fixture
def read(tmp_path):
    """Reads the given files as those of one model, in place of the ones read before."""
    folder = tmp_path / "m"
    model = make_model(folder, config=None)

    def read_files(files: dict[str, object]) -> Vocabulary:
        for path in folder.iterdir():
            if path.name != "model.safetensors":
                path.unlink()
        write_files(folder, files)
        return read_vocabulary(model)

    read_files.model = model
    return read_files


def eos(token: str) -> dict[str, object]:
    return {"tokenizer_config.json": {"eos_token": token}}


@given(
    vocab=st.dictionaries(ANYTHING, st.integers(0, 10**6), max_size=12),
    added=st.dictionaries(ANYTHING, st.integers(0, 10**6), max_size=4),
    nested=st.dictionaries(ANYTHING, st.lists(ANYTHING | st.none() | st.floats()), max_size=3),
    indent=st.sampled_from([None, 2]),
    ascii_only=st.booleans(),
    data=st.data(),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scan_equals_parsing(read, vocab, added, nested, indent, ascii_only, data):
    wanted = data.draw(st.sampled_from([t for t in [*vocab, *added] if t] + ["absent"]))
    tokenizer = {
        "truncation": {"max_length": 10**9},
        "normalizer": nested,
        "added_tokens": [{"id": i, "content": t, "special": True} for t, i in added.items()],
        "model": {"type": "BPE", "dropout": None, "vocab": vocab, "merges": [["a", "b"]]},
        "extra": nested,
    }
    text = json.dumps(tokenizer, indent=indent, ensure_ascii=ascii_only)
    found = read({"tokenizer.json": text.encode(), **eos(wanted)})
    ids = [*vocab.values(), *added.values()]
    assert found.size == max(ids, default=-1) + 1
    assert found.eos_id == added.get(wanted, vocab.get(wanted))
    every = dict(tokens(read.model))
    assert every == {**vocab, **added}
    assert token_ids(read.model, [wanted, "no such"]) == {
        token: every[token] for token in [wanted] if token in every
    }


def test_unigram_ids_are_places(read):
    scored = [["<s>", 0.0], ["▁a", -1.5], ["[", -2e-3], ["</s>", 0]]
    tokenizer = {"added_tokens": [], "model": {"type": "Unigram", "vocab": scored}}
    files = {"tokenizer.json": tokenizer, **eos("</s>")}
    assert read(files) == Vocabulary(4, "</s>", 3)


def test_slow_tokenizers(read):
    bpe = {"vocab.json": {"a": 0, "<end>": 1}, "merges.txt": "", **eos("<end>")}
    assert read(bpe) == Vocabulary(2, "<end>", 1)
    assert read({**bpe, "added_tokens.json": {"<new>": 5}}) == Vocabulary(6, "<end>", 1)
    # \x85 and U+2028 end a line for str.splitlines, not for a tokenizer.
    wordpiece = {"vocab.txt": "[PAD]\n\x85\n\u2028\n[SEP]\n", **eos("[SEP]")}
    assert read(wordpiece) == Vocabulary(4, "[SEP]", 3)


def test_tokens_of_every_kind_of_file(read):
    read({"vocab.txt": '[PAD]\n"\n"quoted"\n\\u0041\n'})
    assert list(tokens(read.model)) == [("[PAD]", 0), ('"', 1), ('"quoted"', 2), ("\\u0041", 3)]
    assert token_ids(read.model, ['"', "A", "\\u0041"]) == {'"': 1, "\\u0041": 3}
    read({"vocab.json": '{"\\u003cs\\u003e": 0, "a/b": 1}', "added_tokens.json": {"a/b": 7}})
    assert list(tokens(read.model)) == [("<s>", 0), ("a/b", 1), ("a/b", 7)], "the later holds"
    assert token_ids(read.model, ["<s>", "a/b"]) == {"<s>": 0, "a/b": 7}
    scored = {"model": {"vocab": [["<s>", 0.0], ["▁a", -1.5]]}}
    read({"tokenizer.json": scored})
    assert dict(tokens(read.model)) == {"<s>": 0, "▁a": 1}
    read({"tokenizer.model": b"\0"})
    assert list(tokens(read.model)) == []
    assert token_ids(read.model, ["a"]) is None
    read({"vocab.json": {"eng": {"a": 0}}})
    assert list(tokens(read.model)) == []
    assert token_ids(read.model, ["a"]) is None


def test_special_tokens_in_their_files(read):
    decoder = {"added_tokens_decoder": {"9": {"content": "<end>"}}, "eos_token": "<end>"}
    files = {"tokenizer_config.json": decoder, "tokenizer.model": b"\0"}
    assert read(files) == Vocabulary(None, "<end>", 9)
    special = {"special_tokens_map.json": {"eos_token": {"content": "b"}}, "vocab.json": {"b": 4}}
    assert read(special) == Vocabulary(5, "b", 4)


def test_vocabulary_per_language_has_no_single_size(read):
    assert read({"vocab.json": {"eng": {"a": 0}}}) == Vocabulary()


@pytest.mark.parametrize(
    "text",
    [
        '{"model": {"vocab": {"a": 1.5}}}',
        '{"model": {"vocab": {"a": "b"}}}',
        '{"model": {"vocab": {"a": 99999999999999999999}}}',
        '{"model": {"vocab": [["a"]]}}',
        '{"model": [1]}',
        '{"added_tokens": [{"id": 1}]}',
        '{"added_tokens": [1]}',
        '{"added_tokens": [{"id": Infinity, "content": "a"}]}',
        '{"added_tokens": [{"id": 1, "content": "a"}',
        '{"model": "}',
        '{"a": }',
        '{"a" 1}',
        "{" + '"a": [' * 50_000 + "}",
        '{"added_tokens": ' + "[" * 50_000 + "]" * 50_000 + "}",
    ],
)
def test_malformed_tokenizer_is_an_error(read, text):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a usable JSON object"):
        read({"tokenizer.json": text})


def test_a_large_tokenizer_is_not_parsed(tmp_path):
    tokens = [f"token-{number:06}" for number in range(20_000)]
    tokenizer = tokenizer_json(tokens, {"<end>": 20_000})
    tokenizer["model"]["merges"] = [[token, token] for token in tokens]
    model = make_model(tmp_path / "m", {"tokenizer.json": tokenizer, **eos("<end>")})
    size = (tmp_path / "m" / "tokenizer.json").stat().st_size
    tracemalloc.start()
    try:
        assert read_vocabulary(model) == Vocabulary(20_001, "<end>", 20_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * size + 100_000  # parsed, it takes five times its size


def test_a_string_without_end_costs_no_memory(read):
    text = '{"model": {"vocab": {"' + "\\a" * 500_000 + "}}}"
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            read({"tokenizer.json": text})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(text)
