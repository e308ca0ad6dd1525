"""How well a model answers: exact answers and loss, from one forward pass.

An answer is exact where each of its tokens, the end included, is the likeliest after those before:
just then greedy decoding writes it. So nothing need be generated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.tiny.tasks import held_out_tasks, is_held_out
from benchmarks.tiny.tokenizer import END, chat_prompt
from benchmarks.tiny.training import IGNORED, Batch, answer_logits, answer_loss, batch_of

EVALUATION_SEED = 20_000
LENGTHS = (3, 5)
KINDS = ("english", "latin", "notes")


@dataclass(frozen=True)
class Score:
    """The share of exact answers, and the mean cross-entropy of the answers' tokens in nats."""

    accuracy: float
    loss: float


def questions(tokenizer: PreTrainedTokenizerFast, kind: str, count: int) -> Batch:
    """Held-out questions in English or Latin, or notes, on words that occur in no training."""
    found = held_out_tasks(EVALUATION_SEED, LENGTHS, count, latin=kind == "latin")
    assert all(is_held_out(task.word) for task in found)
    prompts = [END + task.note if kind == "notes" else chat_prompt(task.question) for task in found]
    pairs = [(prompt, task.answer + END) for prompt, task in zip(prompts, found, strict=True)]
    return batch_of(tokenizer, pairs)


@torch.no_grad()
def score(model: LlamaForCausalLM, asked: Batch) -> Score:
    """Ask all at once. The model is left in evaluation mode."""
    logits, labels = answer_logits(model.eval(), asked)
    right = (logits.argmax(-1) == labels) | (labels == IGNORED)
    return Score(right.all(-1).double().mean().item(), answer_loss(logits, labels).item())
