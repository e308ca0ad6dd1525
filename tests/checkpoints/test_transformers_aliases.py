"""What transformers leaves out of the files of a model with tied weights is found again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergeengine.checkpoints import open_checkpoint
from mergeengine.checkpoints.aliases import alias_of, redundant_alias
from mergeengine.checkpoints.config import contradictions

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = {
    "vocab_size": 32,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
SEQ2SEQ = {
    "vocab_size": 32,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def llama(tied: bool) -> Any:
    config = transformers.LlamaConfig(**TINY, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM(config)


def t5() -> Any:
    config = transformers.T5Config(
        vocab_size=32, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2
    )
    return transformers.T5ForConditionalGeneration(config)


def bart() -> Any:
    config = transformers.BartConfig(**SEQ2SEQ, max_position_embeddings=16)
    return transformers.BartForConditionalGeneration(config)


def whisper() -> Any:
    config = transformers.WhisperConfig(
        **SEQ2SEQ,
        max_source_positions=16,
        max_target_positions=16,
        num_mel_bins=4,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return transformers.WhisperForConditionalGeneration(config)


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=32, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


MODELS: dict[str, Callable[[], Any]] = {
    "llama tied": lambda: llama(True),
    "llama untied": lambda: llama(False),
    "t5": t5,
    "bart": bart,
    "whisper": whisper,
    "gpt2": gpt2,
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**TINY)),
    "roberta": lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**TINY)),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**TINY, head_dim=4)
    ),
    "mamba": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=32, hidden_size=8, num_hidden_layers=2, state_size=4)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_tensors_that_are_not_stored_are_found_under_their_other_name(
    name: str, tmp_path: Path
) -> None:
    model = MODELS[name]()
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    state = model.state_dict()
    absent = {key: value for key, value in state.items() if key not in checkpoint.tensors}
    assert bool(absent) == (name != "llama untied")
    for key, value in absent.items():
        other = alias_of(checkpoint, key, tuple(value.shape))
        assert other is not None, key
        assert torch.equal(state[other], value)
    for key, value in state.items():
        if key in checkpoint.tensors:
            assert checkpoint.tensors[key].shape == tuple(value.shape)
    assert contradictions(checkpoint.config, checkpoint.tensors) == []


def test_an_untied_head_is_not_an_alias_and_a_repeated_one_is_redundant(tmp_path: Path) -> None:
    model = llama(tied=False)
    model.save_pretrained(tmp_path / "own")
    untied = open_checkpoint(tmp_path / "own")
    embed = "model.embed_tokens.weight"
    assert alias_of(untied, "lm_head.weight", (32, 8)) is None
    assert redundant_alias(untied, "lm_head.weight") is None
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    model.save_pretrained(tmp_path / "same")
    assert redundant_alias(open_checkpoint(tmp_path / "same"), "lm_head.weight") == embed
