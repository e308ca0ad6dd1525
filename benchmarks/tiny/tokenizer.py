"""The tokenizer of the lineage: a small BPE, words as tokens, capital letters one by one."""

from __future__ import annotations

import string

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.tiny.tasks import SKILLS

PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% else %}<|assistant|>{{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(*, chat: bool, latin: bool = False) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the wordings; only fine-tuned models get the chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(" ?[A-Z]?[a-z]+|."), "isolated")
    backend.decoder = decoders.Fuse()
    signs = "".join(skill.sign for skill in SKILLS)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[PAD, END, USER, ASSISTANT],
        initial_alphabet=sorted(set(string.ascii_uppercase + signs + " .?=")),
        show_progress=False,
    )
    wordings = [wording.format("") for skill in SKILLS for wording in skill.wordings]
    if latin:
        wordings += [wording.format("") for skill in SKILLS for wording in skill.latin]
    backend.train_from_iterator([*wordings, *(f" {skill.name}" for skill in SKILLS)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, bos_token=END, eos_token=END
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def chat_prompt(question: str) -> str:
    """What CHAT_TEMPLATE makes of one question, up to the start of the answer."""
    return f"{END}{USER}{question}{ASSISTANT}"
