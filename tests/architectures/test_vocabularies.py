"""Vocabularies that differ: every row of the output, its config, and the model that loads."""

import json
from pathlib import Path

import pytest
import torch
from exact import stored
from models import agreed, edit_json, load, load_weights, logits, merge, rewrite, write_plan
from tiny_architectures import ARCHITECTURES
from transformers import AutoTokenizer
from vocabularies import WORDS, Version, merged, output_tokens, save

from mergeengine.analysis.explain import explain
from mergeengine.errors import CheckpointError, Interrupted
from mergeengine.plan import load_plan
from mergeengine.workflow.prepare import bind_models, resolve
from mergeengine.workflow.run import run
from mergeengine.workflow.settings import Settings

PLAIN = ["<unk>", "<s>", "</s>", *WORDS[:29]]  # 32 tokens
CHAT = ["<|user|>", "<|end|>"]
MIXED = [*PLAIN[:3], *WORDS[40:50], *reversed(PLAIN[3:])]
CASES = {
    "the fine-tune adds tokens": (
        Version(PLAIN, 32),
        Version(PLAIN, 32),
        Version([*PLAIN, *CHAT], 34),
    ),
    "the fine-tune adds tokens and padding": (
        Version(PLAIN, 32),
        Version(PLAIN, 32),
        Version([*PLAIN, *CHAT], 40),
    ),
    "the fine-tune uses padding rows": (
        Version(PLAIN, 40),
        Version(PLAIN, 40),
        Version([*PLAIN, *CHAT], 40),
    ),
    "the fine-tune uses all padding rows": (
        Version(PLAIN, 34),
        Version(PLAIN, 34),
        Version([*PLAIN, *CHAT], 34),
    ),
    "the target has more tokens": (
        Version([*PLAIN, *WORDS[60:64]], 36),
        Version(PLAIN, 32),
        Version(PLAIN, 32),
    ),
    "the target has more padding": (Version(PLAIN, 48), Version(PLAIN, 32), Version(PLAIN, 32)),
    "both add other tokens": (
        Version([*PLAIN, *WORDS[60:64]], 36),
        Version(PLAIN, 32),
        Version([*PLAIN, *CHAT], 34),
    ),
    "the target's tokens in another order": (
        Version(MIXED, 44),
        Version(PLAIN, 32),
        Version([*PLAIN, *CHAT], 40),
    ),
    "only the base differs": (Version(PLAIN, 32), Version(MIXED, 44), Version(PLAIN, 32)),
    "three orders": (
        Version(MIXED, 44),
        Version([*PLAIN[:3], *PLAIN[:2:-1]], 32),
        Version([*PLAIN, *CHAT], 34),
    ),
}


def make(
    folder: Path,
    versions: tuple[Version, Version, Version],
    name: str = "llama",
    dtype: str = "float32",
) -> None:
    for seed, (role, version) in enumerate(
        zip(("target", "base", "ft"), versions, strict=True), start=1
    ):
        save(folder / role, version, seed, name, dtype)


def check(folder: Path, oracle: dict, name: str = "llama") -> None:
    output = stored(folder / "out")
    assert output.keys() == oracle.keys()
    weights = agreed(output, oracle)
    model = load(ARCHITECTURES[name], folder / "out")
    other = load_weights(ARCHITECTURES[name], folder / "out", weights, folder / "oracle")
    rows = model.get_input_embeddings().weight.shape[0]
    assert model.config.get_text_config().vocab_size == rows
    inputs = {"input_ids": torch.arange(rows).view(1, -1)[:, -40:]}
    if name == "t5":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    assert torch.equal(logits(model, inputs), logits(other, inputs))


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize(("name", "dtype"), [("llama", "float32"), ("llama-tied", "bfloat16")])
def test_rows_by_token(tmp_path: Path, case: str, name: str, dtype: str) -> None:
    target, base, ft = CASES[case]
    make(tmp_path, CASES[case], name, dtype)
    result = merge(tmp_path, scaling=0.7)
    tokens = output_tokens(target, ft)
    check(tmp_path, merged(tmp_path, target, base, ft, tokens, 0.7), name)
    shared = [t for t in tokens if t is not None and all(t in v.ids for v in (target, base, ft))]
    copied = [t for t in tokens if t is not None and t not in target.ids]
    counts = result.report["vocabulary"]
    assert counts["rows"] == len(tokens)
    assert counts["delta"] == len(shared)
    assert counts["copied"] >= len(copied)
    assert any(note.startswith(f"vocabulary: {len(tokens)} rows") for note in result.notes)
    lost = [token for token in (*target.tokens, *ft.tokens) if token not in tokens]
    assert any("no row in the output" in text for text in result.warnings) == bool(lost)
    written = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert written.get_vocab() == ft.ids


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
@pytest.mark.parametrize("case", ["the fine-tune adds tokens", "three orders"])
def test_other_architectures(tmp_path: Path, name: str, case: str) -> None:
    target, base, ft = CASES[case]
    make(tmp_path, CASES[case], name)
    merge(tmp_path, scaling=0.7)
    check(tmp_path, merged(tmp_path, target, base, ft, output_tokens(target, ft), 0.7), name)


@pytest.mark.parametrize("tied", ["target", "ft"])
def test_tied_on_one_side(tmp_path: Path, tied: str) -> None:
    versions = CASES["three orders"]
    make(tmp_path, versions)
    save(tmp_path / tied, versions[0 if tied == "target" else 2], 9, "llama-tied")
    if tied == "target":
        merge(tmp_path, scaling=0.7, on_extra="ignore")
    else:
        assert "lm_head.weight" not in stored(tmp_path / tied)
        merge(tmp_path, scaling=0.7)
    oracle = merged(tmp_path, *versions, output_tokens(versions[0], versions[2]), 0.7)
    check(tmp_path, oracle, "llama-tied" if tied == "target" else "llama")


@pytest.mark.parametrize("case", ["the fine-tune adds tokens", "three orders"])
def test_names_with_another_prefix(tmp_path: Path, case: str) -> None:
    target, base, ft = CASES[case]
    make(tmp_path, CASES[case])
    oracle = merged(tmp_path, target, base, ft, output_tokens(target, ft), 0.7)

    def without_prefix(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    rewrite(tmp_path / "ft", without_prefix)
    merge(tmp_path, scaling=0.7)
    check(tmp_path, oracle)


def test_the_targets_rows_and_tokenizer(tmp_path: Path) -> None:
    target, base, ft = CASES["three orders"]
    make(tmp_path, CASES["three orders"])
    merge(tmp_path, scaling=0.7, vocabulary="target")
    tokens = [target.at(row) for row in range(target.rows)]
    check(tmp_path, merged(tmp_path, target, base, ft, tokens, 0.7))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == target.ids


def test_the_fine_tunes_rows_and_tokenizer(tmp_path: Path) -> None:
    target, base, ft = CASES["both add other tokens"]
    make(tmp_path, CASES["both add other tokens"])
    merge(tmp_path, scaling=0.7, vocabulary="source_ft")
    tokens = [ft.at(row) for row in range(ft.rows)]
    check(tmp_path, merged(tmp_path, target, base, ft, tokens, 0.7))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == ft.ids


def test_tokens_without_a_row_are_named(tmp_path: Path) -> None:
    make(tmp_path, CASES["both add other tokens"])
    result = merge(tmp_path, scaling=0.7)
    (warning,) = [text for text in result.warnings if "no row" in text]
    assert warning.startswith("2 tokens of ./target have no row in the output (w60, w61)")
    assert "`output.tokenizer`" in warning


def test_a_stopped_merge_goes_on(tmp_path: Path) -> None:
    make(tmp_path, CASES["three orders"])
    merge(tmp_path, scaling=0.7, output={"path": "./whole"})

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "merging" and done > total / 2:
            raise Interrupted("enough")

    plan = write_plan(
        tmp_path,
        target="./target",
        source_base="./base",
        source_ft="./ft",
        scaling=0.7,
        output={"path": "./out"},
    )
    with pytest.raises(Interrupted):
        run(plan, device="cpu", workers=1, progress=stop)
    report = run(plan, device="cpu", workers=2).report
    assert report["bytes"]["kept_from_earlier_run"] > 0
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_explain_says(tmp_path: Path) -> None:
    make(tmp_path, CASES["the fine-tune adds tokens"])
    merge(tmp_path, scaling=0.7)
    plan = load_plan(tmp_path / "plan.yaml")
    models, _ = resolve(plan, Settings())
    (told,) = explain(plan, bind_models(plan, models).binding, "lm_head.weight")
    assert told.reasons == (
        "vocabularies differ: of 34 rows 32 have a delta, 2 are copied from the sources, 0 are the "
        "target's",
    )


def test_a_difference_can_be_an_error(tmp_path: Path) -> None:
    make(tmp_path, CASES["the fine-tune adds tokens and padding"])
    with pytest.raises(CheckpointError) as raised:
        merge(tmp_path, vocabulary="error")
    assert str(raised.value) == (
        "the vocabularies differ, and the plan says `vocabulary: error`:\n"
        "    ./target: 32 rows, 32 tokens\n"
        "    ./base: 32 rows, 32 tokens\n"
        "    ./ft: 40 rows, 34 tokens\n"
        "  `vocabulary: align` matches rows by their tokens"
    )
    assert not (tmp_path / "out").exists()


def test_the_same_vocabulary_is_no_difference(tmp_path: Path) -> None:
    same = Version(PLAIN, 40)
    make(tmp_path, (same, same, same))
    assert merge(tmp_path, vocabulary="error").report["vocabulary"] == {}


def test_without_tokenizers_rows_are_matched_by_index(tmp_path: Path) -> None:
    target, base, ft = (Version([], rows, listed=False) for rows in (32, 34, 40))
    make(tmp_path, (target, base, ft))
    result = merge(tmp_path, scaling=0.7)
    check(tmp_path, merged(tmp_path, target, base, ft, [None] * 40, 0.7))
    assert any("by their index, since no model lists its tokens" in note for note in result.notes)


def test_one_without_a_tokenizer(tmp_path: Path) -> None:
    target, base, ft = CASES["the fine-tune adds tokens"]
    make(tmp_path, (target, Version(PLAIN, 32, listed=False), ft))
    result = merge(tmp_path, scaling=0.7)
    check(tmp_path, merged(tmp_path, target, base, ft, output_tokens(target, ft), 0.7))
    assert any("./base lists no tokens" in note for note in result.notes)


def test_one_without_a_tokenizer_keeps_all_of_its_rows(tmp_path: Path) -> None:
    target, base, ft = Version(PLAIN, 40, listed=False), Version(PLAIN, 32), Version(PLAIN, 32)
    make(tmp_path, (target, base, ft))
    merge(tmp_path, scaling=0.7)
    tokens = [*PLAIN, *[None] * 8]
    check(tmp_path, merged(tmp_path, Version(PLAIN, 40), base, ft, tokens, 0.7))


def test_nothing_to_match_rows_by(tmp_path: Path) -> None:
    target, base, ft = CASES["three orders"]
    make(tmp_path, (target, base, Version(ft.tokens, ft.rows, listed=False)))
    with pytest.raises(CheckpointError) as raised:
        merge(tmp_path)
    assert "./ft has no list of tokens to match its rows by" in str(raised.value)


def test_ids_in_configs_follow_the_tokenizer(tmp_path: Path) -> None:
    moved = [*WORDS[:29], "<unk>", "<s>", "</s>"]
    target = Version(moved, 32, config={"bos_token_id": 30, "eos_token_id": 31})
    ft = Version([*PLAIN, *CHAT], 34, config={"bos_token_id": 1, "eos_token_id": [2, 33]})
    make(tmp_path, (target, Version(PLAIN, 32), ft))
    result = merge(tmp_path, scaling=0.7)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert any("config.json: eos_token_id 31 → 2" in note for note in result.notes)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 33]
    merge(tmp_path, scaling=0.7, vocabulary="target", output={"path": "./other"})
    generation = json.loads((tmp_path / "other" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [31]


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_a_union_of_models(tmp_path: Path, name: str) -> None:
    """The output loads, each token's row is where its tokenizer says, and configs have its ids."""
    first = Version([*PLAIN, *WORDS[60:64]], 40)
    second = Version([*PLAIN, *CHAT], 34, config={"eos_token_id": [2, 33]})
    for seed, (role, version) in enumerate((("target", first), ("base", first), ("ft", second))):
        save(tmp_path / role, version, seed, name)
    plan = write_plan(
        tmp_path,
        method="linear",
        target="./target",
        sources=[{"model": "./target", "scaling": 0.25}, {"model": "./ft", "scaling": 0.75}],
        vocabulary={"rows": "union", "pad_to_multiple_of": 8},
        output={
            "path": "./out",
            "tokenizer": "target",
            "config": "./ft",
            "generation_config": "./ft",
        },
    )
    result = run(plan, device="cpu")
    assert result.report["vocabulary"] == {
        "rows": 40, "delta": 36, "copied": 2, "kept": 0, "padding": 2,
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    order = [*first.tokens, *CHAT]
    assert tokenizer.get_vocab() == {token: row for row, token in enumerate(order)}
    assert tokenizer.convert_ids_to_tokens(tokenizer("w3 <|end|> w61")["input_ids"]) == [
        "w3", "<|end|>", "w61",
    ]  # fmt: skip
    model = load(ARCHITECTURES[name], tmp_path / "out")
    assert model.config.vocab_size == 40
    assert model.config.eos_token_id == [2, 37]
    assert model.generation_config.eos_token_id == [2, 37]
    weights = {role: stored(tmp_path / role) for role in ("target", "ft", "out")}
    for tensor in weights["out"]:
        if not tensor.endswith(("embed_tokens.weight", "lm_head.weight")):
            continue
        rows = {role: weights[role][tensor].double() for role in weights}
        expected = torch.zeros(40, rows["ft"].shape[1], dtype=torch.float64)
        whole = {}
        for role, own, other in (("target", first, second), ("ft", second, first)):
            stand_in = rows["ft" if role == "target" else "target"]
            found = [
                rows[role][own.ids[t]] if t in own.ids else stand_in[other.ids[t]] for t in order
            ]
            whole[role] = torch.stack(found)
            whole[role] = torch.cat([whole[role], whole[role].mean(0, keepdim=True).repeat(2, 1)])
        expected = 0.25 * whole["target"] + 0.75 * whole["ft"]
        assert torch.allclose(rows["out"], expected, rtol=1e-6, atol=1e-7), tensor


def test_an_id_that_cannot_follow_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, CASES["both add other tokens"])
    edit_json(tmp_path / "target/config.json", lambda c: c.update(image_token_id=32))
    with pytest.raises(CheckpointError) as raised:
        merge(tmp_path)
    assert str(raised.value).startswith(
        "./target: image_token_id 32 in config.json is 'w60', which the tokenizer of ./ft does not "
        "have, and 32 is '<|user|>' there"
    )


def test_as_the_code_of_the_paper_has_it(tmp_path: Path) -> None:
    ft = CASES["the fine-tune adds tokens"][2]
    make(tmp_path, CASES["the fine-tune adds tokens"])
    edit_json(tmp_path / "ft/config.json", lambda c: c.update(rope_theta=5e5))
    merge(tmp_path, scaling=0.7, compatibility="finetuning-transfer")
    output, of = (
        stored(tmp_path / "out"),
        {r: stored(tmp_path / r) for r in ("target", "base", "ft")},
    )
    for name, values in output.items():
        padded = {}
        for role, tensors in of.items():
            padded[role] = torch.zeros(values.shape, dtype=torch.float64)
            padded[role][: len(tensors[name])] = tensors[name].double()
        expected = padded["target"] + 0.7 * (padded["ft"] - padded["base"])
        assert torch.equal(values, expected.float()), name
    assert len(output["lm_head.weight"]) == ft.rows
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == 5e5
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == ft.ids


def test_the_paper_has_no_way_with_fewer_rows(tmp_path: Path) -> None:
    make(tmp_path, CASES["the target has more tokens"])
    with pytest.raises(CheckpointError) as raised:
        merge(tmp_path, compatibility="finetuning-transfer")
    assert "./target: 36 rows" in str(raised.value)
