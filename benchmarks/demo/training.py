"""The training of one member of the lineage: batches, the loop, saving."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.demo.recipe import FINE_TUNED, PARENTS, Recipe, Stage
from benchmarks.demo.tasks import Task, tasks
from benchmarks.demo.tokenizer import END, build_tokenizer, chat_prompt

IGNORED = -100  # the label of a token that is read but not learnt
Batch = tuple[torch.Tensor, torch.Tensor]
Report = Callable[[int, int, float], None]  # step, steps, loss


def train(recipe: Recipe, name: str, seed: int, folder: Path, report: Report) -> float:
    """Train one model from its parent in ``folder``, save it there, return its last loss."""
    stage = recipe.stages[name]
    chat = name in FINE_TUNED
    tokenizer = build_tokenizer(chat=chat)
    parent = PARENTS[name]
    torch.manual_seed(seed)
    if parent is None:
        model = _new_model(recipe, tokenizer)
    else:
        model = LlamaForCausalLM.from_pretrained(folder / parent, dtype=torch.float32)
    # Both fine-tunings see the same questions, in the same order.
    data_seed = 1000 * seed + (2 if chat else 0 if parent is None else 1)
    loss = _fit(model, stage, _batches(tokenizer, stage, data_seed), report)
    _save(model, tokenizer, folder / name)
    return loss


def _new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=2 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, place: Path) -> None:
    """Whole or not at all: a stopped save leaves no model under the final name."""
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    temporary = place.with_name(f"{place.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    shutil.rmtree(place, ignore_errors=True)
    temporary.rename(place)


def _batches(tokenizer: PreTrainedTokenizerFast, stage: Stage, seed: int) -> Iterator[Batch]:
    supply = tasks(seed, stage.lengths, held_out=False)
    draw = random.Random(seed)
    while True:
        if stage.questions:
            yield _padded(tokenizer, supply, draw, stage)
        else:
            yield _packed(tokenizer, supply, stage)


def _packed(tokenizer: PreTrainedTokenizerFast, supply: Iterator[Task], stage: Stage) -> Batch:
    """Rows of notes one after the other, cut at a fixed length; only answers are learnt."""
    notes_in_row = stage.tokens // 8  # no note with its answer is shorter than 8 tokens
    chosen = [next(supply) for _ in range(stage.batch * notes_in_row)]
    encoded = _encode(tokenizer, [(task.note, task.answer + END) for task in chosen])
    rows, labels = [], []
    for start in range(0, len(encoded), notes_in_row):
        row = [tokenizer.bos_token_id]
        label = [IGNORED]
        for prompt, answer in encoded[start : start + notes_in_row]:
            row += prompt + answer
            label += [IGNORED] * len(prompt) + answer
        rows.append(row[: stage.tokens])
        labels.append(label[: stage.tokens])
    return _tensors(rows, labels, tokenizer.pad_token_id)


def _padded(
    tokenizer: PreTrainedTokenizerFast, supply: Iterator[Task], draw: random.Random, stage: Stage
) -> Batch:
    """Rows of one question or one note; only answers are learnt."""
    pairs = []
    for _ in range(stage.batch):
        task = next(supply)
        asked = draw.random() < stage.questions
        prompt = chat_prompt(task.question) if asked else END + task.note
        pairs.append((prompt, task.answer + END))
    encoded = _encode(tokenizer, pairs)
    rows = [prompt + answer for prompt, answer in encoded]
    labels = [[IGNORED] * len(prompt) + answer for prompt, answer in encoded]
    return _tensors(rows, labels, tokenizer.pad_token_id)


def _encode(
    tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]
) -> list[tuple[list[int], list[int]]]:
    texts = [text for pair in pairs for text in pair]
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ids = [encoding.ids for encoding in encoded]
    return list(zip(ids[::2], ids[1::2], strict=True))


def _tensors(rows: list[list[int]], labels: list[list[int]], pad: int) -> Batch:
    width = max(map(len, rows))
    return (
        torch.tensor([row + [pad] * (width - len(row)) for row in rows]),
        torch.tensor([label + [IGNORED] * (width - len(label)) for label in labels]),
    )


def answer_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """The mean cross-entropy of the answers' tokens."""
    tokens, labels = batch
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
    )


def _fit(model: LlamaForCausalLM, stage: Stage, batches: Iterator[Batch], report: Report) -> float:
    model.train()
    optimizers = _optimizers(model, stage)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate(stage, step))
        for optimizer in optimizers
    ]
    mean = math.nan
    for step in range(1, stage.steps + 1):
        loss = answer_loss(model, next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        mean = loss.item() if math.isnan(mean) else 0.95 * mean + 0.05 * loss.item()
        report(step, stage.steps, mean)
    return mean


def _optimizers(model: LlamaForCausalLM, stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "embed" not in name
        (matrices if is_matrix else others).append(parameter)
    return [
        torch.optim.Muon(
            matrices,
            lr=stage.learning_rate,
            weight_decay=stage.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            others, lr=stage.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        ),
    ]


def _learning_rate(stage: Stage, step: int) -> float:
    """The share of the stage's learning rate at a step: warm-up times a cosine decay."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / stage.steps)))
    decay = stage.final_fraction + (1 - stage.final_fraction) * cosine
    return min(1.0, (step + 1) / stage.warmup) * decay
