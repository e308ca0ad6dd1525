"""The scores of the five models of one seed, as anyone would load and ask them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from benchmarks.demo.scores import MODELS, Scores
from benchmarks.tiny.tasks import Task, held_out_tasks, is_held_out
from benchmarks.tiny.tokenizer import CHAT_TEMPLATE, END

QUESTIONS = 400  # words of the lengths of the fine-tuning
LONG_QUESTIONS = 200  # words one letter longer, which only v2 has read
NOTES = 200  # for the loss of the base models
EVALUATION_SEED = 20_000
BASES = ("v1", "v2")


def evaluate(folder: Path) -> Scores:
    """Ask the five models in ``folder`` the same held-out questions."""
    asked = held_out_tasks(EVALUATION_SEED, (3, 5), QUESTIONS)
    asked_long = held_out_tasks(EVALUATION_SEED + 1, (6, 6), LONG_QUESTIONS)
    assert all(is_held_out(task.word) for task in asked + asked_long)
    models = {
        name: AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
        for name in MODELS
    }
    tokenizers = {name: AutoTokenizer.from_pretrained(folder / name) for name in MODELS}

    def score(name: str, tasks: list[Task], *, notes: bool = False) -> float:
        tokenizer = tokenizers[name]
        prompts = [END + task.note if notes else _chat(tokenizer, task.question) for task in tasks]
        answers = _generate(models[name], tokenizer, prompts)
        return sum(a == task.answer for a, task in zip(answers, tasks, strict=True)) / len(tasks)

    def loss(name: str) -> float:
        return _loss(
            models[name], tokenizers[name], held_out_tasks(EVALUATION_SEED + 2, (3, 6), NOTES)
        )

    v1, v1_ft, v2, v2_ft = (_flat(models[name]) for name in ("v1", "v1_ft", "v2", "v2_ft"))
    return Scores(
        questions={name: score(name, asked) for name in MODELS},
        long_questions={name: score(name, asked_long) for name in MODELS},
        long_notes={name: score(name, asked_long, notes=True) for name in BASES},
        note_loss={name: loss(name) for name in BASES},
        v2_distance=((v2 - v1).norm() / v1.norm()).item(),
        fine_tuning_distance=((v1_ft - v1).norm() / v1.norm()).item(),
        transfer_cosine=torch.cosine_similarity(v1_ft - v1, v2_ft - v2, dim=0).item(),
    )


def _chat(tokenizer: PreTrainedTokenizerFast, question: str) -> str:
    """All models are asked alike; a base model has no template of its own and is lent one."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        chat_template=tokenizer.chat_template or CHAT_TEMPLATE,
        tokenize=False,
        add_generation_prompt=True,
    )
    return str(prompt)


@torch.no_grad()
def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> list[str]:
    """Greedy answers, in batches of prompts of one length (so nothing is padded)."""
    by_length: dict[int, list[int]] = defaultdict(list)
    encoded = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    for index, ids in enumerate(encoded):
        by_length[len(ids)].append(index)
    answers = [""] * len(prompts)
    for length, indices in by_length.items():
        tokens = torch.tensor([encoded[index] for index in indices])
        generated = model.generate(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), do_sample=False
        )
        for index, row in zip(indices, generated[:, length:].tolist(), strict=True):
            if tokenizer.eos_token_id in row:  # an answer that does not end is no answer
                answers[index] = tokenizer.decode(row[: row.index(tokenizer.eos_token_id)])
    return answers


@torch.no_grad()
def _loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tasks: list[Task]) -> float:
    """The mean cross-entropy of the tokens of the answers to notes."""
    total, count = 0.0, 0
    for task in tasks:
        prompt = tokenizer(END + task.note, add_special_tokens=False)["input_ids"]
        answer = tokenizer(task.answer + END, add_special_tokens=False)["input_ids"]
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        total += torch.nn.functional.cross_entropy(
            logits, torch.tensor(answer), reduction="sum"
        ).item()
        count += len(answer)
    return total / count


def _flat(model: PreTrainedModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])
