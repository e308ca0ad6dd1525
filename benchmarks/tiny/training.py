"""The training of a very small Llama: batches, the loop, saving."""

from __future__ import annotations

import math
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.tiny.stage import Stage
from benchmarks.tiny.tasks import Task, tasks
from benchmarks.tiny.tokenizer import END, chat_prompt

IGNORED = -100  # the label of a token that is read but not learnt
Report = Callable[[int, int, float], None]  # step, steps, mean loss
Optimizers = Sequence[torch.optim.Optimizer]


@dataclass(frozen=True)
class Batch:
    """Token ids, and labels, which are IGNORED where nothing is learnt; both (rows, width)."""

    tokens: torch.Tensor
    labels: torch.Tensor


def new_model(
    hidden: int, layers: int, heads: int, tokenizer: PreTrainedTokenizerFast
) -> LlamaForCausalLM:
    """A model with random weights, by torch's own seed."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def load_model(folder: Path) -> LlamaForCausalLM:
    """A saved model, in float32."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, place: Path) -> None:
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


def batches(
    tokenizer: PreTrainedTokenizerFast, stage: Stage, seed: int, *, latin: bool = False
) -> Iterator[Batch]:
    """An endless supply of batches for a stage."""
    supply = tasks(seed, stage.lengths, held_out=False, latin=latin)
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
    return batch_of(tokenizer, pairs)


def batch_of(tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> Batch:
    """A row for each (prompt, answer), padded; only answers are learnt."""
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
    return Batch(
        torch.tensor([row + [pad] * (width - len(row)) for row in rows]),
        torch.tensor([label + [IGNORED] * (width - len(label)) for label in labels]),
    )


def answer_logits(model: LlamaForCausalLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (rows, width - 1, vocabulary), and the labels (rows, width - 1) for them."""
    logits = model(input_ids=batch.tokens[:, :-1], use_cache=False).logits
    return logits, batch.labels[:, 1:]


def answer_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of the answers' tokens."""
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def fit(
    model: LlamaForCausalLM,
    stage: Stage,
    supply: Iterator[Batch],
    report: Report,
    *,
    optimizers: Optimizers | None = None,
    first: int = 0,
    last: int | None = None,
) -> float:
    """Train in place, from after step ``first`` to step ``last`` of the stage; the last mean loss.

    Whoever sits down to a stage more than once passes its ``optimizers`` on.
    """
    optimizers = new_optimizers(model, stage) if optimizers is None else optimizers
    mean = math.nan
    model.train()
    for step in range(first + 1, (stage.steps if last is None else last) + 1):
        loss = answer_loss(*answer_logits(model, next(supply)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * _share_of_learning_rate(stage, step - 1)
            optimizer.step()
            optimizer.zero_grad()
        mean = loss.item() if math.isnan(mean) else 0.95 * mean + 0.05 * loss.item()
        report(step, stage.steps, mean)
    return mean


def new_optimizers(model: LlamaForCausalLM, stage: Stage) -> Optimizers:
    """Muon for the matrices of the layers if the stage says so, AdamW for everything else."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "embed" not in name
        (matrices if is_matrix and stage.muon else others).append(parameter)
    adamw = torch.optim.AdamW(
        others, lr=stage.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    if not stage.muon:
        return [adamw]
    muon = torch.optim.Muon(
        matrices,
        lr=stage.learning_rate,
        weight_decay=stage.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, adamw]


def _share_of_learning_rate(stage: Stage, step: int) -> float:
    """The share of the stage's learning rate at a step: warm-up times a cosine decay."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / stage.steps)))
    decay = stage.final_fraction + (1 - stage.final_fraction) * cosine
    return min(1.0, (step + 1) / stage.warmup) * decay


def quiet_torch() -> None:
    """One thread per process, no denormal numbers, no messages of the libraries."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers.utils import logging

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
