"""What is measured of one seed, kept in a file beside its models."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.tiny.stage import code_digest

RECYCLED = "v2_recycled"
MODELS = ("v1", "v1_ft", "v2", RECYCLED, "v2_ft")


@dataclass(frozen=True)
class Scores:
    """Shares of exactly right answers, per model, and how far v2 is from v1."""

    questions: dict[str, float]
    long_questions: dict[str, float]
    long_notes: dict[str, float]  # of v1 and v2
    note_loss: dict[str, float]  # of v1 and v2, on held-out notes as v2 reads in training
    v2_distance: float  # ||v2 - v1|| / ||v1||
    fine_tuning_distance: float  # ||v1_ft - v1|| / ||v1||
    transfer_cosine: float  # between v1_ft - v1 and v2_ft - v2


def scores_of(folder: Path) -> Scores:
    """Score the models in ``folder``; asked again about the same models, read the answer."""
    key = _key(folder)
    cache = folder / "scores.json"
    if cache.exists():
        stored = json.loads(cache.read_text())
        if stored["key"] == key:
            return Scores(**stored["scores"])
    from benchmarks.demo.evaluation import evaluate
    from benchmarks.tiny.training import quiet_torch

    quiet_torch()
    scores = evaluate(folder)
    cache.write_text(json.dumps({"key": key, "scores": asdict(scores)}, indent=1))
    return scores


def _key(folder: Path) -> str:
    digest = hashlib.sha256()
    own = [Path(__file__).with_name(name) for name in ("evaluation.py", "scores.py")]
    digest.update(code_digest(*own).encode())
    for model in MODELS:
        for file in sorted((folder / model).glob("*.safetensors")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
