from typing import Any

import pytest

from mergeengine.checkpoints.config import compare_configs, contradictions
from mergeengine.checkpoints.quantised import quantised
from mergeengine.lazy.dtypes import BFLOAT16
from mergeengine.lazy.stored import Stored, StoredFile

LLAMA_3 = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0.dev0",
    "vocab_size": 128256,
}
SCALING = {"factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}
LLAMA_31 = {
    **LLAMA_3,
    "max_position_embeddings": 131072,
    "rope_scaling": SCALING,
    "transformers_version": "4.42.3",
}


def compare(target: Any, **others: Any) -> tuple[list[str], list[str]]:
    report = compare_configs("target", target, list(others.items()))
    return report.errors, report.notes


def test_llama_3_to_3_1_passes_with_notes() -> None:
    errors, notes = compare(LLAMA_31, source_base=LLAMA_3, source_ft=LLAMA_3)
    assert errors == []
    assert notes == [
        "max_position_embeddings: target 131072, source_base 8192, source_ft 8192",
        f"rope_scaling: target {SCALING}, source_base None, source_ft None",
    ]


def test_equal_absent_and_null_say_nothing() -> None:
    assert compare(LLAMA_3, a=LLAMA_3, b={}, c=None) == ([], [])
    assert compare(None, a=LLAMA_3) == ([], [])
    derived = {**LLAMA_3, "num_key_value_heads": None}
    assert compare(LLAMA_3, a=derived) == compare(derived, a=LLAMA_3) == ([], [])


@pytest.mark.parametrize(
    "key",
    ["model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"],
)
def test_structure_must_agree(key: str) -> None:
    other = {**LLAMA_3, key: "another"}
    errors, notes = compare(LLAMA_3, source_base=LLAMA_3, source_ft=other)
    assert errors == [f"{key}: target {LLAMA_3[key]!r}, source_ft 'another'"]
    assert notes == []


@pytest.mark.parametrize("key", ["rms_norm_eps", "vocab_size", "tie_word_embeddings", "rope_theta"])
def test_settings_are_notes(key: str) -> None:
    errors, notes = compare(LLAMA_3, source_base={**LLAMA_3, key: 7})
    assert errors == []
    assert notes == [f"{key}: target {LLAMA_3[key]!r}, source_base 7"]


def test_rope_is_compared_across_its_spellings() -> None:
    newer = {k: v for k, v in LLAMA_31.items() if not k.startswith("rope_")}
    newer["rope_parameters"] = {**SCALING, "rope_theta": 500000.0}
    assert compare(LLAMA_31, a=newer) == ([], [])
    older = {**LLAMA_3, "rope_scaling": {"type": "linear", "factor": 2.0}}
    renamed = {**LLAMA_3, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    assert compare(older, a=renamed) == ([], [])
    default = {**LLAMA_3, "rope_scaling": {"rope_type": "default"}}
    assert compare(LLAMA_3, a=default) == ([], [])
    _, notes = compare(LLAMA_3, a=newer)
    assert [note.partition(":")[0] for note in notes] == ["max_position_embeddings", "rope_scaling"]


def test_nested_configs_are_compared_by_their_path() -> None:
    one = {"model_type": "gemma3", "text_config": {"hidden_size": 8, "sliding_window": 4}}
    two = {"model_type": "gemma3", "text_config": {"hidden_size": 9, "sliding_window": 5}}
    errors, notes = compare(one, source_ft=two)
    assert errors == ["text_config.hidden_size: target 8, source_ft 9"]
    assert notes == ["text_config.sliding_window: target 4, source_ft 5"]


def test_hostile_nesting_ends() -> None:
    config: dict[str, Any] = {"vocab_size": 1}
    for _ in range(5000):
        config = {"text_config": config, "model_type": "x"}
    assert compare(config, a=config) == ([], [])
    assert quantised(config) is None


def test_quantised_weights_are_named_with_the_way_out() -> None:
    for config, kind in (
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised ('gptq')"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantised ('mxfp4')"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantised"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "('compressed-tensors')"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "('awq')"),
    ):
        sentence = quantised(config)
        assert sentence is not None
        assert kind in sentence
        assert "unquantised checkpoint" in sentence or "save_pretrained" in sentence
    assert quantised({"quantization_config": {"quant_method": "fp8"}}) is None
    assert quantised(LLAMA_3) is None
    assert quantised({"quantization_config": None}) is None
    assert quantised(None) is None


def tensors(*shapes: tuple[str, tuple[int, ...]]) -> dict[str, Stored]:
    from pathlib import Path

    file = StoredFile(Path("x"), 0)
    return {name: Stored("./x", name, BFLOAT16, shape, file, 0) for name, shape in shapes}


def layers(stack: str, count: int) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{stack}.{i}.mlp.experts.{j}.w", (1,)) for i in range(count) for j in range(9)]


EMBED = "model.embed_tokens.weight"
CONFIG = {"vocab_size": 100, "hidden_size": 8, "num_hidden_layers": 3}


def test_a_config_that_fits_its_tensors() -> None:
    assert contradictions(CONFIG, tensors((EMBED, (100, 8)), *layers("model.layers", 3))) == []
    assert contradictions(None, tensors((EMBED, (1, 1)))) == []
    assert contradictions(CONFIG, tensors(("other", (3, 3)))) == []
    nested = {"text_config": CONFIG, "vision_config": {"hidden_size": 2, "num_hidden_layers": 7}}
    both = [*layers("text.model.layers", 3), *layers("vision.encoder.layers", 7)]
    assert contradictions(nested, tensors((EMBED, (100, 8)), *both)) == []


def test_widths_and_layers_that_are_stored_otherwise_on_purpose() -> None:
    albert = {"vocab_size": 100, "hidden_size": 8, "embedding_size": 2}
    assert contradictions(albert, tensors(("a.word_embeddings.weight", (100, 2)))) == []
    deepseek = {"num_hidden_layers": 3, "num_nextn_predict_layers": 1}
    assert contradictions(deepseek, tensors(*layers("model.layers", 4))) == []
    t5 = {"num_layers": 2, "num_decoder_layers": 4}
    both = [*layers("encoder.block", 2), *layers("decoder.block", 4)]
    assert contradictions(t5, tensors(*both)) == []
    assert contradictions({"n_layer": 2}, tensors(*layers("h", 2))) == []


def test_a_config_that_contradicts_its_tensors() -> None:
    found = contradictions(CONFIG, tensors((EMBED, (101, 9)), *layers("model.layers", 5)))
    assert found == [
        f"config.json says vocab_size 100, but {EMBED} has 101 rows",
        f"config.json says hidden size 8, but {EMBED} has 9 columns",
        "config.json says num_hidden_layers 3, but the tensors have 5 of model.layers.N",
    ]
    strange = {"vocab_size": "100", "hidden_size": None, "num_hidden_layers": [3]}
    assert contradictions(strange, tensors((EMBED, (101, 9)), *layers("h", 5))) == []
