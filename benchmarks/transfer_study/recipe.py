"""The recipe of the study: every number that it depends on, and its files in a seed's folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.tiny.stage import Stage, code_digest

BASES = ("m1", "m2", "m3", "m4", "m5")
CHAINS = ("lineage", "transfer", "algorithm-1")
CURVE = "curve.json"  # beside a fine-tune: how it came about
MEASURES = "measures.json"  # of a seed
TRANSLATED = ("m3", "m4", "m5")  # those whose fine-tune is trained in Latin too


PRETRAINING = Stage(
    steps=1500, learning_rate=3e-3, final_fraction=0.0, warmup=50, lengths=(3, 5), questions=0.0
)
INSTRUCTION = Stage(
    steps=200,
    learning_rate=3e-3,
    final_fraction=0.0,
    warmup=20,
    lengths=(3, 5),
    questions=0.75,
    batch=32,
    muon=False,
)
LATIN = replace(INSTRUCTION, steps=120, learning_rate=2e-3, questions=1.0)


@dataclass(frozen=True)
class Pretraining:
    """Five checkpoints of one run of a very small Llama."""

    hidden: int = 64
    layers: int = 4
    heads: int = 4
    stage: Stage = PRETRAINING
    checkpoints: tuple[int, ...] = (250, 500, 800, 1150, 1500)  # of the run's steps


@dataclass(frozen=True)
class Finetuning:
    """The same for every model: first on questions, then, for some, on questions in Latin."""

    instruction: Stage = INSTRUCTION
    latin: Stage = LATIN
    curve: tuple[int, ...] = (10, 25, 50, 100, 150)  # steps looked at, beside first and last
    questions: int = 400


@dataclass(frozen=True)
class Measuring:
    """What the models are asked, and where the engine's sweeps look."""

    questions: int = 400
    line: tuple[float, ...] = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
    scalings: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    weights: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5)  # of each of two deltas


Part = TypeVar("Part", Pretraining, Finetuning, Measuring)


@dataclass(frozen=True)
class Recipe:
    """The study of one seed. Each part is a file; what reads it is done anew when it changes."""

    pretraining: Pretraining = field(default_factory=Pretraining)
    finetuning: Finetuning = field(default_factory=Finetuning)
    measuring: Measuring = field(default_factory=Measuring)

    def write(self, folder: Path, seed: int) -> None:
        """Write `pretraining.json` and so on; what says the same already is left alone."""
        for name, part in vars(self).items():
            document = {"seed": seed, "code": _code(), "part": asdict(part)}
            text = json.dumps(document, indent=1)
            path = folder / f"{name}.json"
            if not path.exists() or path.read_text() != text:
                path.write_text(text)


def read(folder: Path, kind: type[Part]) -> tuple[Part, int]:
    """A part of the recipe of the seed whose folder this is, and the seed."""
    document = json.loads((folder / f"{kind.__name__.lower()}.json").read_text())
    return kind(**_typed(document["part"])), document["seed"]


def _typed(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as tuples, its mappings as stages."""
    found = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            value = Stage(**_typed(value))
        found[name] = tuple(value) if isinstance(value, list) else value
    return found


def _code() -> str:
    """Names the code that trains and scores: a change to it makes everything anew."""
    return code_digest(*(Path(__file__).with_name(name) for name in ("train.py", "scoring.py")))
