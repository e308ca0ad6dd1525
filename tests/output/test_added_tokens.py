"""The tokenizer of a union, as the tokenizers library reads it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mergeengine.checkpoints.checkpoint import AddedToken, Checkpoint, open_checkpoint
from mergeengine.errors import CheckpointError
from mergeengine.output.companion_files import CompanionSet
from mergeengine.output.tokenizer_files import choose_tokenizer

TEXTS = ["hello world, the cat sat on the mat", "a quick brown fox", "hélas 'quoted' \\ text"]
SPECIAL = {"special": True, "normalized": False}
KINDS = ["BPE", "WordPiece", "WordLevel", "Unigram"]


def tokenizer(kind: str) -> Tokenizer:
    unknown = ["<unk>"]
    if kind == "BPE":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet)
    elif kind == "WordPiece":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=unknown)
    elif kind == "WordLevel":
        made = Tokenizer(models.WordLevel(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=unknown)
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=60, special_tokens=unknown, unk_token="<unk>", show_progress=False
        )
    made.train_from_iterator(TEXTS, trainer)
    made.add_special_tokens(["<|end|>", "<|a|>"])
    return made


def extended(folder: Path, *more: AddedToken) -> CompanionSet:
    checkpoint = open_checkpoint(str(folder), weights="none")
    donor = replace(checkpoint, added_tokens=more)
    _, files = choose_tokenizer(donor, donor)
    return files


def added(size: int) -> tuple[AddedToken, ...]:
    texts = [("zzz", None), ('Ġé"\\\n', None), ("<|im_start|>", SPECIAL), ("<é>", {})]
    return tuple(AddedToken(text, size + n, found) for n, (text, found) in enumerate(texts))


def read(files: CompanionSet, name: str) -> bytes:
    (file,) = [file for file in files.files if file.name == name]
    with file.open() as stream:
        content = stream.read()
    assert file.size == len(content)
    return content


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pretty", [True, False])
def test_each_token_has_its_id(tmp_path: Path, kind: str, pretty: bool) -> None:
    before = tokenizer(kind)
    before.save(str(tmp_path / "tokenizer.json"), pretty=pretty)
    size = before.get_vocab_size()
    more = added(size)
    after = Tokenizer.from_str(read(extended(tmp_path, *more), "tokenizer.json").decode())
    assert after.get_vocab() == {
        **before.get_vocab(),
        **{token.text: token.number for token in more},
    }
    for text in TEXTS:
        assert after.encode(text).ids == before.encode(text).ids
    start, end = size + 2, before.token_to_id("<|end|>")
    found = after.encode("hello<|im_start|>world<é><|end|>").ids
    assert (found.count(start), found.count(size + 3), found[-1]) == (1, 1, end)
    assert after.decode(found).count("<|") == 0
    assert after.decode(found, skip_special_tokens=False).count("<|") == 2


def test_without_added_tokens_and_with_ids_that_are_nobodys(tmp_path: Path) -> None:
    document = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {}, "unk_token": "u"}}
    document["model"]["vocab"] = {"u": 0, "v": 4}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    content = json.loads(read(extended(tmp_path, *added(5)), "tokenizer.json"))
    assert content["model"]["vocab"]["<é>"] == 8
    assert [token["id"] for token in content["added_tokens"]] == [7, 8]
    assert content["added_tokens"][1]["normalized"] is True
    document["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="`added_tokens` stands behind `model`"):
        extended(tmp_path, *added(5))


def test_a_list_has_no_gaps(tmp_path: Path) -> None:
    vocabulary = [["u", 0.0], ["v", -1.5]]
    document = {"added_tokens": [], "model": {"type": "Unigram", "unk_id": 0, "vocab": vocabulary}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    content = json.loads(read(extended(tmp_path, *added(2)), "tokenizer.json"))
    assert [token for token, _ in content["model"]["vocab"]][2:4] == ["zzz", 'Ġé"\\\n']
    with pytest.raises(CheckpointError, match="the id 2 is that of no token"):
        extended(tmp_path, *added(3))


def test_what_lies_beside(tmp_path: Path) -> None:
    tokenizer("BPE").save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": "<|end|>", "added_tokens_decoder": {"288": {"content": "<|end|>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    files = extended(tmp_path, *added(300))
    assert [file.name for file in files.files] == [
        "chat_template.jinja", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert any("left out, since tokenizer.json has tokens" in note for note in files.notes)
    assert json.loads(read(files, "tokenizer_config.json"))["added_tokens_decoder"] == {
        "288": {"content": "<|end|>"},
        "302": {
            "content": "<|im_start|>", "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True,
        },
        "303": {
            "content": "<é>", "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": True, "special": False,
        },
    }  # fmt: skip
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text('{"u": 0}')
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json: write one with transform"):
        extended(tmp_path, *added(300))


def test_an_unchanged_tokenizer_is_copied(tmp_path: Path) -> None:
    tokenizer("BPE").save(str(tmp_path / "tokenizer.json"))
    found: Checkpoint = open_checkpoint(str(tmp_path), weights="none")
    _, files = choose_tokenizer(found, found)
    assert files.files[0].content == tmp_path / "tokenizer.json"
