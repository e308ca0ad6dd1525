"""Adapters as PEFT writes them, against the model that PEFT merges. Skipped where it is absent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mergeengine

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama(**config: Any) -> Any:
    settings = {"attention_bias": True, "tie_word_embeddings": False, **SMALL, **config}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(intermediate_size=24, num_key_value_heads=2, **settings)
    )


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=40,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=8,
            bos_token_id=0,
            eos_token_id=1,
            tie_word_embeddings=False,
        )
    )


def gpt_oss() -> Any:
    return transformers.GptOssForCausalLM(
        transformers.GptOssConfig(
            intermediate_size=24,
            num_key_value_heads=2,
            head_dim=8,
            num_local_experts=3,
            num_experts_per_tok=2,
            pad_token_id=0,
            eos_token_id=1,
            **SMALL,
        )
    )


def mixtral() -> Any:
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            intermediate_size=24, num_key_value_heads=2, num_local_experts=3, **SMALL
        )
    )


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "lora": (llama, {"target_modules": ["q_proj", "down_proj"]}),
    "patterns": (
        llama,
        {
            "target_modules": ["q_proj", "v_proj", "up_proj"],
            "rank_pattern": {"q_proj": 6, r"model\.layers\.1\.mlp\.up_proj": 2},
            "alpha_pattern": {"v_proj": 3},
            "use_rslora": True,
        },
    ),
    "dora": (llama, {"target_modules": ["q_proj", "up_proj", "embed_tokens"], "use_dora": True}),
    "embedding and head": (llama, {"target_modules": ["embed_tokens", "lm_head"]}),
    "tied embedding": (
        lambda: llama(tie_word_embeddings=True),
        {"target_modules": ["embed_tokens", "q_proj"]},
    ),
    "bias of B": (llama, {"target_modules": ["q_proj"], "lora_bias": True}),
    "all biases": (llama, {"target_modules": ["q_proj"], "bias": "all"}),
    "biases of LoRA": (llama, {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "whole modules": (
        llama,
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    ),
    "tokens": (llama, {"target_modules": ["q_proj"], "trainable_token_indices": [5, 1, 39]}),
    "Conv1D": (gpt2, {"target_modules": ["c_attn", "c_proj", "lm_head"], "fan_in_fan_out": True}),
    "Conv1D, square alone": (gpt2, {"target_modules": ["attn.c_proj"], "fan_in_fan_out": True}),
    "DoRA of Conv1D": (gpt2, {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "experts that the base has one by one": (
        mixtral,
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
            "alpha_pattern": {"down_proj": 3},
        },
    ),
    "experts": (
        gpt_oss,
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        },
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_the_merged_model_is_that_of_peft(name: str, tmp_path: Path) -> None:
    make, settings = CASES[name]
    torch.manual_seed(2)
    model = make()
    model.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **settings)
    )
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.rand_like(parameter))
    adapted.save_pretrained(tmp_path / "lora")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "version: 1\nbase: ./base\nsource_ft: {adapter: ./lora}\noutput: {path: ./out}\n"
    )
    mergeengine.run(plan)
    out = load_file(tmp_path / "out" / "model.safetensors")
    base = load_file(tmp_path / "base" / "model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert out.keys() == merged.keys()
    for tensor, value in merged.items():
        torch.testing.assert_close(out[tensor], value, rtol=1e-5, atol=1e-5, msg=tensor)
    assert any(not torch.equal(out[tensor], base[tensor]) for tensor in out)
