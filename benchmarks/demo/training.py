"""The training of one member of the demo's lineage."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.demo.recipe import FINE_TUNED, PARENTS, Recipe
from benchmarks.tiny.tokenizer import build_tokenizer
from benchmarks.tiny.training import Report, batches, fit, load_model, new_model, save


def train(recipe: Recipe, name: str, seed: int, folder: Path, report: Report) -> float:
    """Train one model from its parent in ``folder``, save it there, return its last loss."""
    stage = recipe.stages[name]
    chat = name in FINE_TUNED
    tokenizer = build_tokenizer(chat=chat)
    parent = PARENTS[name]
    torch.manual_seed(seed)
    if parent is None:
        model = new_model(recipe.hidden, recipe.layers, recipe.heads, tokenizer)
    else:
        model = load_model(folder / parent)
    # Both fine-tunings see the same questions, in the same order.
    data_seed = 1000 * seed + (2 if chat else 0 if parent is None else 1)
    loss = fit(model, stage, batches(tokenizer, stage, data_seed), report)
    save(model, tokenizer, folder / name)
    return loss
