"""The trainings of the study's chains, as their steps call them, in a seed's folder.

    python -m benchmarks.transfer_study.train pretrain NUMBER OUTPUT [--after MODEL]
    python -m benchmarks.transfer_study.train finetune MODEL OUTPUT [--latin]

`pretraining.json` and `finetuning.json` in the working directory say everything else. Seeded: the
same processor and versions give the same bytes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.tiny.tokenizer import build_tokenizer
from benchmarks.tiny.training import (
    batches,
    fit,
    load_model,
    new_model,
    new_optimizers,
    quiet_torch,
    save,
)
from benchmarks.transfer_study.recipe import CURVE, Finetuning, Pretraining, read
from benchmarks.transfer_study.scoring import questions, score

OPTIMIZERS = "optimizers.pt"  # beside a base: what the next sitting of the run goes on with


def main() -> None:
    """Train one model as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer_study.train")
    commands = parser.add_subparsers(dest="command", required=True)
    pretraining = commands.add_parser("pretrain")
    pretraining.add_argument("number", type=int)
    pretraining.add_argument("output", type=Path)
    pretraining.add_argument("--after", type=Path, help="the checkpoint before")
    finetuning = commands.add_parser("finetune")
    finetuning.add_argument("model", type=Path)
    finetuning.add_argument("output", type=Path)
    finetuning.add_argument("--latin", action="store_true")
    given = parser.parse_args()
    quiet_torch()
    if given.command == "pretrain":
        pretrain(*read(Path.cwd(), Pretraining), given.number, given.after, given.output)
    else:
        finetune(*read(Path.cwd(), Finetuning), given.model, given.output, latin=given.latin)


def pretrain(recipe: Pretraining, seed: int, number: int, after: Path | None, output: Path) -> None:
    """The pretraining run from one checkpoint to the next: one run, in as many sittings."""
    tokenizer = build_tokenizer(chat=False, latin=True)
    torch.manual_seed(seed)
    if after is None:
        model = new_model(recipe.hidden, recipe.layers, recipe.heads, tokenizer)
    else:
        model = load_model(after)
    optimizers = new_optimizers(model, recipe.stage)
    if after is not None:
        states = torch.load(after / OPTIMIZERS)
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict(state)
    first, last = (0, *recipe.checkpoints)[number - 1 : number + 1]
    supply = batches(tokenizer, recipe.stage, 1000 * seed + number)
    fit(model, recipe.stage, supply, _tell, optimizers=optimizers, first=first, last=last)
    save(model, tokenizer, output)
    torch.save([optimizer.state_dict() for optimizer in optimizers], output / OPTIMIZERS)


def finetune(recipe: Finetuning, seed: int, source: Path, output: Path, *, latin: bool) -> None:
    """Fine-tune on questions, all models alike: the same ones, in the same order."""
    stage = recipe.latin if latin else recipe.instruction
    tokenizer = build_tokenizer(chat=True, latin=True)
    asked = questions(tokenizer, "latin" if latin else "english", recipe.questions)
    model = load_model(source)
    curve = [{"step": 0, **asdict(score(model, asked))}]

    def look(step: int, steps: int, loss: float) -> None:
        if step in recipe.curve or step == steps:
            curve.append({"step": step, **asdict(score(model, asked))})
            model.train()
        _tell(step, steps, loss)

    supply = batches(tokenizer, stage, 1000 * seed + (900 if latin else 500), latin=latin)
    fit(model, stage, supply, look)
    save(model, tokenizer, output)
    (output / CURVE).write_text(json.dumps(curve))


def _tell(step: int, steps: int, loss: float) -> None:
    if step % 100 == 0 or step == steps:
        print(f"step {step} of {steps}: loss {loss:.3f}", flush=True)


if __name__ == "__main__":
    main()
