"""Tables and plots of all seeds, written to a folder."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from benchmarks.transfer_study.comparisons import tables
from benchmarks.transfer_study.recipe import Recipe
from benchmarks.transfer_study.tables import Measures


def publish(folder: Path, measures: Mapping[int, Measures], recipe: Recipe) -> bool:
    """Write `README.md`, `tables.json` and the plots; False where there is no matplotlib."""
    folder.mkdir(parents=True, exist_ok=True)
    made = tables(list(measures.values()))
    sections = [_heading(list(measures), recipe), *(table.to_markdown() for table in made)]
    (folder / "README.md").write_text("\n".join(sections))
    document = {
        "seeds": list(measures),
        "tables": {table.name: table.to_json() for table in made},
    }
    (folder / "tables.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    try:
        from benchmarks.transfer_study.plots import draw
    except ImportError:
        return False
    draw(list(measures.values()), folder)
    return True


def _heading(seeds: list[int], recipe: Recipe) -> str:
    pretraining, finetuning = recipe.pretraining, recipe.finetuning
    numbers = ", ".join(map(str, seeds))
    points = ", ".join(map(str, pretraining.checkpoints))
    told = "mean ± standard deviation over seeds" if len(seeds) > 1 else "one seed, so no spread"
    return f"""# The transfer study: results

Written by `make study` ([how it is made](../README.md)). Seeds: {numbers}; {told}.

A Llama of {pretraining.layers} layers with hidden size {pretraining.hidden}; M1 to M5 are its \
pretraining run after {points} steps.
Fine-tuning is {finetuning.instruction.steps} steps, in Latin {finetuning.latin.steps}. Accuracies \
are shares of {recipe.measuring.questions} held-out questions, answered exactly.
torch {version("torch")}, transformers {version("transformers")}, {platform.machine()}.
"""
