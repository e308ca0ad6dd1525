"""Tiny models of real architectures, from the config classes of transformers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers

VOCABULARY = 128
BATCH, LENGTH = 2, 9

_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
}
_GROUPED = {**_TEXT, "num_key_value_heads": 2}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SEQ2SEQ = {
    **_IDS,
    "vocab_size": VOCABULARY,
    "d_model": 48,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 80,
    "decoder_start_token_id": 1,
}


def _ids() -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (BATCH, LENGTH))


def _text() -> dict[str, torch.Tensor]:
    return {"input_ids": _ids()}


def _seq2seq() -> dict[str, torch.Tensor]:
    return {"input_ids": _ids(), "decoder_input_ids": _ids()}


def _pixels() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(BATCH, 3, 16, 16)}


def _speech() -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(BATCH, 8, 32), "decoder_input_ids": _ids()}


@dataclass(frozen=True)
class Architecture:
    """``part`` is a glob that chooses some of its tensors, in every layer."""

    model: str
    config: str
    settings: dict[str, Any]
    part: str = "*.mlp.*"
    inputs: Callable[[], dict[str, torch.Tensor]] = _text

    def build(self, **changes: Any) -> transformers.PreTrainedModel:
        config = getattr(transformers, self.config)(**{**self.settings, **changes})
        return self.model_class(config)

    @property
    def model_class(self) -> Any:
        return getattr(transformers, self.model)

    @property
    def auto_class(self) -> Any:
        """What a user loads it with who has not looked which model it is."""
        ending = next(ending for ending in _AUTO if self.model.endswith(ending))
        return getattr(transformers, _AUTO[ending])


_AUTO = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForImageClassification": "AutoModelForImageClassification",
    "WhisperForConditionalGeneration": "AutoModelForSpeechSeq2Seq",
    "LlavaForConditionalGeneration": "AutoModelForImageTextToText",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
}
_MOE = {"num_experts_per_tok": 2}

ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", "LlamaConfig", _GROUPED),
    "llama-tied": Architecture(
        "LlamaForCausalLM", "LlamaConfig", {**_GROUPED, "tie_word_embeddings": True}
    ),
    "qwen2": Architecture("Qwen2ForCausalLM", "Qwen2Config", _GROUPED),
    "qwen3": Architecture("Qwen3ForCausalLM", "Qwen3Config", {**_GROUPED, "head_dim": 12}),
    "qwen3-moe": Architecture(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**_GROUPED, **_MOE, "num_experts": 4, "moe_intermediate_size": 24, "head_dim": 12},
    ),
    "mistral": Architecture("MistralForCausalLM", "MistralConfig", _GROUPED),
    "gemma3": Architecture(
        "Gemma3ForCausalLM", "Gemma3TextConfig", {**_GROUPED, "head_dim": 12, "sliding_window": 4}
    ),
    "phi3": Architecture("Phi3ForCausalLM", "Phi3Config", {**_GROUPED, "pad_token_id": 0}),
    "olmo2": Architecture("Olmo2ForCausalLM", "Olmo2Config", _GROUPED),
    "gpt-neox": Architecture("GPTNeoXForCausalLM", "GPTNeoXConfig", _TEXT),
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        "GPT2Config",
        {**_IDS, "vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 3, "n_head": 4},
    ),
    "mixtral": Architecture(
        "MixtralForCausalLM",
        "MixtralConfig",
        {**_GROUPED, **_MOE, "num_local_experts": 4},
        part="*.experts.*",
    ),
    "gpt-oss": Architecture(
        "GptOssForCausalLM",
        "GptOssConfig",
        {**_GROUPED, **_MOE, **_IDS, "num_local_experts": 4, "head_dim": 12},
    ),
    "deepseek-v3": Architecture(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            **_TEXT,
            **_MOE,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 24,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "first_k_dense_replace": 1,
        },
    ),
    "mamba": Architecture(
        "MambaForCausalLM",
        "MambaConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 3, "state_size": 4},
        part="*.mixer.*_proj.*",
    ),
    "jamba": Architecture(
        "JambaForCausalLM",
        "JambaConfig",
        {
            **_GROUPED,
            **_MOE,
            "num_experts": 4,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "use_mamba_kernels": False,
        },
        part="*.feed_forward.*",
    ),
    "falcon-h1": Architecture(
        "FalconH1ForCausalLM",
        "FalconH1Config",
        {
            **_GROUPED,
            **_IDS,
            "head_dim": 12,
            "mamba_d_ssm": 48,
            "mamba_n_heads": 4,
            "mamba_d_head": 12,
            "mamba_d_state": 8,
            "mamba_chunk_size": 4,
        },
        part="*.feed_forward.*",
    ),
    "llava": Architecture(
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "text_config": {**_GROUPED, "model_type": "llama"},
            "vision_config": {
                **{key: value for key, value in _TEXT.items() if key != "vocab_size"},
                "model_type": "clip_vision_model",
                "image_size": 16,
                "patch_size": 4,
            },
            "image_token_index": 0,
        },
    ),
    "t5": Architecture(
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": VOCABULARY,
            "d_model": 48,
            "d_kv": 12,
            "d_ff": 80,
            "num_layers": 3,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        part="*Attention*",
        inputs=_seq2seq,
    ),
    "bart": Architecture(
        "BartForConditionalGeneration",
        "BartConfig",
        {**_SEQ2SEQ, "max_position_embeddings": 32},
        part="*.fc?.*",
        inputs=_seq2seq,
    ),
    "bert": Architecture("BertForMaskedLM", "BertConfig", _TEXT, part="*attention*"),
    "albert": Architecture(
        "AlbertForMaskedLM", "AlbertConfig", {**_TEXT, "embedding_size": 16}, part="predictions.*"
    ),
    "vit": Architecture(
        "ViTForImageClassification",
        "ViTConfig",
        {
            **{key: value for key, value in _TEXT.items() if key != "vocab_size"},
            "image_size": 16,
            "patch_size": 4,
            "num_labels": 5,
        },
        part="*attention*",
        inputs=_pixels,
    ),
    "resnet": Architecture(
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 32, "hidden_sizes": [32, 96], "depths": [1, 2], "num_labels": 5},
        part="*.normalization.*",
        inputs=_pixels,
    ),
    "whisper": Architecture(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            **_SEQ2SEQ,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "max_target_positions": 32,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        part="*_attn.*",
        inputs=_speech,
    ),
}
