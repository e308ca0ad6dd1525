"""Tokens that masks name by their texts become rows of the target."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergeengine.checkpoints.vocabulary import token_ids
from mergeengine.compiler import tokens as tokens_module
from mergeengine.compiler import vocabulary as vocabulary_module
from mergeengine.errors import PlanError, VerificationError
from mergeengine.plan import parse_plan
from mergeengine.workflow.prepare import prepare
from mergeengine.workflow.run import run

TOKENS = ["<s>", "a", "42", "Ġhello", "<|im_start|>", "<|im_end|>", "b", "1-2"]
WORDS = "model.embed_tokens.weight"


def tokenizer(folder, ids):
    model = {"type": "BPE", "vocab": ids, "merges": []}
    added = [{"id": ids["<s>"], "content": "<s>"}] if "<s>" in ids else []
    text = json.dumps({"added_tokens": added, "model": model})
    (folder / "tokenizer.json").write_text(text)


@pytest.fixture
def models(tmp_path):
    found = {}
    for seed, name in enumerate(("target", "base", "ft", "other")):
        generator = torch.Generator().manual_seed(seed)
        found[name] = torch.randn(9, 4, generator=generator)
        (tmp_path / name).mkdir()
        save_file({WORDS: found[name]}, tmp_path / name / "model.safetensors")
        tokenizer(tmp_path / name, {token: place for place, token in enumerate(TOKENS)})
    return found


def write(folder, tokens, rest=""):
    text = "version: 1\ntarget: ./target\nsource_base: ./base\noutput: {path: out}\n"
    text += rest or "source_ft: ./ft\n"
    text += f"masks:\n  - {{tokens: {tokens}}}\n"
    (folder / "plan.yaml").write_text(text)
    return folder / "plan.yaml"


def changed(folder, models):
    """Which rows of the output are the target's plus the delta; the others are the target's."""
    found = load_file(folder / "out" / "model.safetensors")[WORDS]
    rows = (found != models["target"]).any(1).nonzero().flatten().tolist()
    merged = (models["target"].double() + (models["ft"].double() - models["base"].double())).float()
    assert torch.equal(found[rows], merged[rows])
    return rows


@pytest.mark.parametrize(
    ("tokens", "rows"),
    [
        ('["<|im_start|>", 8, "0-1"]', [0, 1, 4, 8]),
        ('"<|im_end|>"', [5]),
        ('{token: "42"}', [2]),
        ('"6-"', [6, 7, 8]),
        ('{token: "1-2"}', [7]),
        ('[Ġhello, "5"]', [3, 5]),
    ],
)
def test_rows_of_tokens(tokens, rows, models, tmp_path):
    assert run(write(tmp_path, tokens), device="cpu").made
    assert changed(tmp_path, models) == rows


def test_the_output_s_tokenizer_is_asked_then_the_target_s_and_the_fine_tune_s(models, tmp_path):
    plan = write(tmp_path, '["<|im_start|>"]')
    run(plan, device="cpu")
    assert changed(tmp_path, models) == [4]
    told = json.loads((tmp_path / "plan.lock").read_text())["tokens"]
    assert told == {"./ft": {"<|im_start|>": 4}}
    (tmp_path / "ft" / "tokenizer.json").unlink()
    (tmp_path / "base" / "tokenizer.json").unlink()
    run(plan, device="cpu")
    assert changed(tmp_path, models) == [4]
    told = json.loads((tmp_path / "plan.lock").read_text())["tokens"]
    assert told == {"./target": {"<|im_start|>": 4}}
    (tmp_path / "target" / "tokenizer.json").unlink()
    with pytest.raises(PlanError, match=r"no tokenizer of .*\./target.* lists its tokens"):
        run(plan, device="cpu")


def test_every_mask_is_looked_up(models, tmp_path):
    sources = "sources:\n"
    for name in ("other", "ft"):
        sources += f'  - {{name: {name}, source_ft: ./{name}, masks: [{{tokens: ["a"]}}]}}\n'
    plan = parse_plan(write(tmp_path, '["b"]', sources).read_text(), tmp_path / "plan.yaml")
    prepared = prepare(plan)
    assert prepared.pins.substituted == {"tokens": {"./other": {"a": 1, "b": 6}}}
    shown = [
        [applied.action.text for applied in delta.actions]
        for delta in prepared.binding.tensors[0].deltas
    ]
    assert shown == [['tokens: "a" (1)', 'tokens: "b" (6)']] * 2


def test_unknown_tokens(models, tmp_path):
    plan = write(tmp_path, '["<|im_strt|>", "Hello", "§§§", "<|im_end|>"]')
    with pytest.raises(PlanError) as raised:
        run(plan, device="cpu")
    at = f"{plan}:7:5: the tokenizer of ./ft has no token"
    assert str(raised.value) == (
        f"{at} `<|im_strt|>`; the nearest are `<|im_start|>` and `<|im_end|>`\n"
        f"{at} `Hello`; the nearest is `Ġhello`\n"
        f"{at} `§§§`"
    )
    ids = dict.fromkeys(TOKENS[:4], 0)
    tokenizer(tmp_path / "ft", ids)
    with pytest.raises(PlanError, match=r"`<\|im_end\|>`; in that of ./target it is 5: write"):
        run(plan, device="cpu")
    assert not (tmp_path / "out").exists()


def test_rows_beyond_the_tensor_are_told_with_the_token(models, tmp_path):
    for name in ("target", "base", "ft"):
        tokenizer(tmp_path / name, {"<s>": 0, "far": 9})
    with pytest.raises(Exception, match=r'tokens: "far" \(9\)\)'):
        run(write(tmp_path, "[far]"), device="cpu")


def test_ids_that_change_are_another_output(models, tmp_path):
    def tokenizers(ids):
        for name in ("target", "base", "ft"):
            tokenizer(tmp_path / name, ids)

    plan = write(tmp_path, '["a"]', "source_ft: ./ft\nvocabulary: target\n")
    assert run(plan, device="cpu").made
    lock = json.loads((tmp_path / "plan.lock").read_text())
    manifest = json.loads((tmp_path / "out" / "mergeengine.json").read_text())
    assert lock["tokens"] == {"./target": {"a": 1}} == manifest["plan"]["tokens"]
    assert not run(plan, device="cpu").made
    tokenizers({"a": 3})
    with pytest.raises(VerificationError, match=r"tokens of ./target: .*'a': 1.*now.*'a': 3"):
        run(plan, device="cpu", locked=True)
    assert run(plan, device="cpu").made
    assert changed(tmp_path, models) == [3]


def test_tokens_are_looked_up_once(models, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(tokens_module, "token_ids", lambda *a: asked.append(a) or token_ids(*a))
    run(write(tmp_path, '["<|im_start|>"]'), device="cpu")
    assert changed(tmp_path, models) == [4]
    assert len(asked) == 1


@pytest.mark.parametrize("vocabulary", ["align", "target", "source_ft", "error"])
def test_where_all_vocabularies_are_equal_no_token_is_read(
    vocabulary, models, tmp_path, monkeypatch
):
    def read(*_):
        raise AssertionError("tokens were read")

    monkeypatch.setattr(vocabulary_module, "token_rows", read)
    plan = write(tmp_path, "[1]", rest=f"source_ft: ./ft\nvocabulary: {vocabulary}\n")
    assert prepare(parse_plan(plan.read_text(), plan)).binding.vocabulary == {}
    tokenizer(tmp_path / "ft", {token: place for place, token in enumerate(TOKENS[::-1])})
    with pytest.raises(AssertionError):
        prepare(parse_plan(plan.read_text(), plan))


def test_another_tokenizer_is_read_even_where_all_models_are_alike(models, tmp_path):
    tokenizer(tmp_path / "other", {token: place for place, token in enumerate(TOKENS[::-1])})
    rest = "source_ft: ./ft\n"
    plan = write(tmp_path, "[0]", rest=rest)
    text = plan.read_text().replace("{path: out}", "{path: out, tokenizer: ./other}")
    assert prepare(parse_plan(text, plan)).binding.vocabulary["rows"] == 9
