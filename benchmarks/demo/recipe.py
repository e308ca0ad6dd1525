"""The recipe of the lineage: every number that training depends on, and a digest of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.tiny.stage import Stage, code_digest

# Model -> the model that its training starts from.
PARENTS: dict[str, str | None] = {"v1": None, "v2": "v1", "v1_ft": "v1", "v2_ft": "v2"}
FINE_TUNED = ("v1_ft", "v2_ft")


_FINE_TUNING = Stage(
    steps=500, learning_rate=4e-3, final_fraction=0.0, warmup=20, lengths=(3, 5), questions=0.75
)


@dataclass(frozen=True)
class Recipe:
    """A tiny Llama, pretrained (v1), pretrained further (v2), and both fine-tuned alike."""

    hidden: int = 64
    layers: int = 4
    heads: int = 4
    stages: dict[str, Stage] = field(
        default_factory=lambda: {
            "v1": Stage(
                steps=900,
                learning_rate=3e-3,
                final_fraction=0.02,
                warmup=50,
                lengths=(3, 5),
                questions=0.0,
            ),
            "v2": Stage(
                steps=300,
                learning_rate=1.5e-3,
                final_fraction=0.0,
                warmup=30,
                lengths=(3, 6),
                questions=0.0,
            ),
            "v1_ft": _FINE_TUNING,
            "v2_ft": _FINE_TUNING,
        }
    )

    def digest(self) -> str:
        """Names what training produces: the numbers above and the code that uses them."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        digest.update(code_digest(Path(__file__).with_name("training.py")).encode())
        return digest.hexdigest()
