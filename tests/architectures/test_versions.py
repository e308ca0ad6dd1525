"""What differs between real versions of a model: rope, tokenizer, stop tokens, dtypes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import double_roundings, expected, layer, stored
from models import (
    Storage,
    check_output,
    edit_json,
    load,
    logits,
    merge,
    rewrite,
    save_lineage,
    save_llama,
)
from tiny_architectures import ARCHITECTURES
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperFeatureExtractor,
)

ROPE_31 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
ROLES = ("base", "ft", "target", "out")
LLAMA_30 = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "max_position_embeddings": 8192,
}
LLAMA_31 = {"rope_parameters": ROPE_31, "max_position_embeddings": 131072}


def check_transfer(folder: Path, coefficient: float, architecture: str = "llama") -> None:
    base, ft, target = (stored(folder / role) for role in ("base", "ft", "target"))
    check_output(folder, expected(target, [(base, ft, lambda name: coefficient)]), architecture)


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("old_style", [False, True], ids=["rope_parameters", "rope_theta"])
def test_llama_30_to_31(tmp_path: Path, old_style: bool) -> None:
    save_llama(tmp_path / "base", 1, **LLAMA_30)
    save_llama(tmp_path / "ft", 2, **LLAMA_30)
    save_llama(tmp_path / "target", 3, **LLAMA_31)
    if old_style:  # as the files of that time are written

        def before_version_5(config: dict[str, Any]) -> None:
            del config["rope_parameters"]
            config |= {"rope_theta": 500000.0, "rope_scaling": None}
            config["torch_dtype"] = config.pop("dtype")

        edit_json(tmp_path / "base" / "config.json", before_version_5)
        edit_json(tmp_path / "ft" / "config.json", before_version_5)
    result = merge(tmp_path, scaling=0.7)
    assert not result.warnings
    notes = [note for note in result.notes if note.startswith("configs differ")]
    assert [note.split(":")[1].strip() for note in notes] == [
        "max_position_embeddings",
        "rope_scaling",
    ]
    assert all(role in note for note in notes for role in ("./target", "./base", "./ft"))
    written = config_of(tmp_path / "out")
    assert written["rope_parameters"] == ROPE_31
    assert written["max_position_embeddings"] == 131072
    assert written == config_of(tmp_path / "target")
    check_transfer(tmp_path, 0.7)


def test_the_fine_tunes_rope_would_give_another_model(tmp_path: Path) -> None:
    save_llama(tmp_path / "base", 1, **LLAMA_30)
    save_llama(tmp_path / "ft", 2, **LLAMA_30)
    save_llama(tmp_path / "target", 3, **LLAMA_31)
    merge(tmp_path, output={"config": "source_ft"})
    assert config_of(tmp_path / "out") == config_of(tmp_path / "ft")
    llama = ARCHITECTURES["llama"]
    inputs = {"input_ids": torch.arange(3, 120)[None]}
    model = load(llama, tmp_path / "out")
    right = load(
        llama,
        tmp_path / "out",
        config=load(llama, tmp_path / "target").config,
    )
    assert not torch.equal(logits(model, inputs), logits(right, inputs))


def save_tokenizer(folder: Path, words: str, eos: str, template: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(words.split())}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token=eos
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


CHAT = "{% for m in messages %}<s> {{ m['role'] }} {{ m['content'] }} <eot> {% endfor %}"
PLAIN = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
TALK = [{"role": "user", "content": "hello world"}, {"role": "assistant", "content": "bye"}]


WORDS = "<unk> <s> </s> <eot> hello world bye user assistant"


def save_talkers(folder: Path, *, target_eos: int = 2) -> None:
    """A base and a target that end with ``</s>`` and a fine-tune that also ends with ``<eot>``."""
    plain = {"bos_token_id": 1, "eos_token_id": 2}
    save_llama(folder / "base", 1, **plain)
    save_llama(folder / "target", 3, **{**plain, "eos_token_id": target_eos})
    ft = save_llama(folder / "ft", 2, bos_token_id=1, eos_token_id=[2, 3])
    ft.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=[2, 3], do_sample=True, temperature=0.6, top_p=0.9
    )
    ft.save_pretrained(folder / "ft")
    save_tokenizer(folder / "ft", WORDS, "<eot>", CHAT)
    save_tokenizer(folder / "base", WORDS, "</s>", PLAIN)
    save_tokenizer(folder / "target", WORDS, "</s>", PLAIN)


def test_tokenizer_template_and_stops_are_the_fine_tunes(tmp_path: Path) -> None:
    save_talkers(tmp_path)
    result = merge(tmp_path, scaling=0.7)
    assert not result.warnings
    ours, theirs = (AutoTokenizer.from_pretrained(tmp_path / role) for role in ("out", "ft"))
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.eos_token == "<eot>"
    ids = ours.apply_chat_template(TALK, return_dict=False)
    assert ids == theirs.apply_chat_template(TALK, return_dict=False) == [1, 7, 4, 5, 3, 1, 8, 6, 3]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "ft" / name).read_bytes()
    generation = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert generation.eos_token_id == [2, 3]
    assert (generation.do_sample, generation.temperature, generation.top_p) == (True, 0.6, 0.9)
    assert config_of(tmp_path / "out")["eos_token_id"] == 2
    check_transfer(tmp_path, 0.7)


def test_the_targets_own_when_asked(tmp_path: Path) -> None:
    save_talkers(tmp_path)
    result = merge(tmp_path, output={"tokenizer": "target", "generation_config": "target"})
    assert not result.warnings
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token == "</s>"
    assert tokenizer.apply_chat_template(TALK, tokenize=False) == "hello worldbye"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == 2


def test_stops_that_disagree_are_told(tmp_path: Path) -> None:
    save_talkers(tmp_path, target_eos=9)
    (warning,) = merge(tmp_path).warnings
    assert "end-of-sequence ids differ" in warning
    assert "generation_config.json (./ft) 2, 3" in warning
    assert "config.json (./target) 9" in warning
    (tokenizer_warning,) = merge(
        tmp_path, name="other", output={"path": "./other", "generation_config": "target"}
    ).warnings
    assert "<eot> = 3" in tokenizer_warning


def test_a_tokenizer_beyond_the_embedding_is_told(tmp_path: Path) -> None:
    save_talkers(tmp_path)
    words = f"{WORDS} " + " ".join(f"w{number}" for number in range(121))
    save_tokenizer(tmp_path / "ft", words, "<eot>", CHAT)
    (warning,) = merge(tmp_path).warnings
    assert "ids up to 129" in warning
    assert "only 128 rows" in warning


def test_the_feature_extractor_comes_with_the_fine_tune(tmp_path: Path) -> None:
    save_lineage(ARCHITECTURES["whisper"].build, tmp_path, Storage("bfloat16", False))
    WhisperFeatureExtractor(feature_size=8, chunk_length=7).save_pretrained(tmp_path / "ft")
    WhisperFeatureExtractor(feature_size=8, chunk_length=9).save_pretrained(tmp_path / "target")
    assert not merge(tmp_path).warnings
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "out").chunk_length == 7


def test_models_of_three_dtypes(tmp_path: Path) -> None:
    save_llama(tmp_path / "base", 1, torch.float32)
    save_llama(tmp_path / "ft", 2, torch.float16)
    save_llama(tmp_path / "target", 3)
    merge(tmp_path, scaling=0.7)
    assert {tensor.dtype for tensor in stored(tmp_path / "out").values()} == {torch.bfloat16}
    check_transfer(tmp_path, 0.7)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_dtype_when_asked(tmp_path: Path, dtype: str) -> None:
    for number, role in enumerate(("base", "ft", "target")):
        save_llama(tmp_path / role, number)
    merge(tmp_path, scaling=0.7, masks=[{"layers": 1, "scale": 0}], output={"dtype": dtype})
    base, ft, target = (stored(tmp_path / role) for role in ("base", "ft", "target"))
    dtypes = dict.fromkeys(target, getattr(torch, dtype))
    sources = [(base, ft, lambda name: 0.0 if layer(name) == 1 else 0.7)]
    check_output(tmp_path, expected(target, sources, dtypes))
    assert config_of(tmp_path / "out")["dtype"] == dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_arithmetic_in_float64_rounds_every_value_right(tmp_path: Path, dtype: str) -> None:
    save_lineage(ARCHITECTURES["qwen2"].build, tmp_path, Storage(dtype, False))
    merge(tmp_path, scaling=0.7, numerics={"compute_dtype": "float64"})
    base, ft, target, output = (stored(tmp_path / role) for role in ROLES)
    oracle = expected(target, [(base, ft, lambda name: 0.7)])
    assert not any(double_roundings(output[name], oracle[name]).any() for name in output)


def test_dtypes_by_rule(tmp_path: Path) -> None:
    for number, role in enumerate(("base", "ft", "target")):
        save_llama(tmp_path / role, number)
    rules = [{"match": "*norm*", "dtype": "float32"}, {"layers": "1-", "dtype": "float16"}]
    merge(tmp_path, scaling=0.7, output={"dtype": rules})
    base, ft, target = (stored(tmp_path / role) for role in ("base", "ft", "target"))
    dtypes = {
        name: torch.float32
        if "norm" in name
        else torch.float16
        if layer(name) == 1
        else torch.bfloat16
        for name in target
    }
    assert set(dtypes.values()) == {torch.float32, torch.float16, torch.bfloat16}
    check_output(tmp_path, expected(target, [(base, ft, lambda name: 0.7)], dtypes))


@pytest.mark.parametrize(
    ("architecture", "name", "buffers"),
    [
        ("gpt2", "transformer.h.0.attn.bias", torch.ones(3, 1, 1, 8, 8).tril().bool()),
        ("bert", "bert.embeddings.position_ids", torch.arange(24).view(3, 1, 8)),
    ],
)
def test_buffers_of_booleans_and_integers_are_the_targets(
    tmp_path: Path, architecture: str, name: str, buffers: torch.Tensor
) -> None:
    """As old files hold attention masks and positions."""
    save_lineage(ARCHITECTURES[architecture].build, tmp_path, Storage("float16", False))
    for role, buffer in zip(("base", "ft", "target"), buffers, strict=True):
        different = buffer if role == "target" else ~buffer
        rewrite(tmp_path / role, lambda tensors, value=different: tensors.update({name: value}))
    assert merge(tmp_path, scaling=0.7).report["tensors"]["not float"] == 1
    assert torch.equal(stored(tmp_path / "out")[name], buffers[2])
    check_transfer(tmp_path, 0.7, architecture)


def test_two_fine_tunes_at_once(tmp_path: Path) -> None:
    for number, role in enumerate(("base", "ft", "target", "other-base", "other-ft")):
        save_llama(tmp_path / role, number)
    merge(
        tmp_path,
        masks=[{"layers": 0, "scale": 0.5}],
        sources=[
            {"source_base": "./base", "source_ft": "./ft", "scaling": 0.7},
            {
                "source_base": "./other-base",
                "source_ft": "./other-ft",
                "scaling": -0.3,
                "masks": [{"match": "*.mlp.*", "scale": 0.25}, {"layers": 1, "scale": 0}],
            },
        ],
    )

    def first(name: str) -> float:
        return 0.7 * 0.5 if layer(name) == 0 else 0.7

    def second(name: str) -> float:
        own = 0.25 if ".mlp." in name else 0.0 if layer(name) == 1 else 1.0
        return -0.3 * (0.5 if layer(name) == 0 else 1.0) * own

    tensors = {path.name: stored(path) for path in tmp_path.iterdir() if path.is_dir()}
    sources = [
        (tensors["base"], tensors["ft"], first),
        (tensors["other-base"], tensors["other-ft"], second),
    ]
    check_output(tmp_path, expected(tensors["target"], sources))


def test_a_task_vector_on_its_own_base(tmp_path: Path) -> None:
    save_llama(tmp_path / "base", 1)
    save_llama(tmp_path / "ft", 2)
    merge(tmp_path, base="./base", scaling=0.7)
    base, ft = stored(tmp_path / "base"), stored(tmp_path / "ft")
    check_output(tmp_path, expected(base, [(base, ft, lambda name: 0.7)]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_whole_delta_on_its_own_base_is_nearly_the_fine_tune(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    save_llama(tmp_path / "base", 1, dtype)
    save_llama(tmp_path / "ft", 2, dtype)
    merge(tmp_path, base="./base")
    output, ft = stored(tmp_path / "out"), stored(tmp_path / "ft")
    assert all(torch.equal(output[name], ft[name]) for name in ft)
