"""What a training depends on beside its data: without torch, to be read at once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """One training: its data, its length, and its learning rate (warm-up, then a cosine)."""

    steps: int
    learning_rate: float
    final_fraction: float
    warmup: int
    lengths: tuple[int, int]  # of the words
    questions: float  # the share of questions; the rest are notes
    batch: int = 64
    tokens: int = 32  # of a packed row of notes
    weight_decay: float = 0.1
    muon: bool = True  # for the matrices of the layers; if not, AdamW for everything


def code_digest(*further: Path) -> str:
    """Names the code that makes data and trains: all of this package, and what is given."""
    digest = hashlib.sha256()
    for path in (*sorted(Path(__file__).parent.glob("*.py")), *further):
        digest.update(path.read_bytes())
    return digest.hexdigest()
