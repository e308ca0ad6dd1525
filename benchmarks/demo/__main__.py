"""``python -m benchmarks.demo``: train a tiny lineage, merge it with the engine, ask all models."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks.demo.lineage import forget, run_all
from benchmarks.demo.scores import Scores

DESCRIPTION = (
    "Train a tiny lineage, merge it with the engine, and ask all models the same questions."
)
BAR = 0.7  # the least share of v2_ft's accuracy that v2 + delta must reach, per seed
MOST_OF_BASE = 0.05  # v2 alone must not know the answers

ROWS = {
    "v1": "v1",
    "v1_ft": "v1_ft      fine-tuned v1",
    "v2": "v2         v1, pretrained further",
    "v2_recycled": "recycled   v2 + (v1_ft - v1)",
    "v2_ft": "v2_ft      fine-tuned v2",
}


def main() -> int:
    """Run the demo; 0 if every seed meets the bar, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=DESCRIPTION)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="one lineage each"
    )
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="where all is kept")
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), help="parallel processes"
    )
    parser.add_argument("--retrain", action="store_true", help="start from nothing")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    seeds = sorted(set(arguments.seeds))
    if arguments.retrain:
        forget(folder, seeds)
    start = time.time()
    scores = run_all(folder, seeds, max(1, arguments.workers))
    print(report(scores))
    print(f"[{time.time() - start:5.0f} s] done", file=sys.stderr)
    return 0 if all(map(passes, scores.values())) else 1


def ratio(scores: Scores) -> float:
    """The accuracy of the recycled model as a share of that of the real fine-tune."""
    return scores.questions["v2_recycled"] / max(scores.questions["v2_ft"], 1e-9)


def passes(scores: Scores) -> bool:
    """Whether one seed meets the bar."""
    return ratio(scores) >= BAR and scores.questions["v2"] <= MOST_OF_BASE


def report(scores: dict[int, Scores]) -> str:
    """The tables and the verdict."""
    everything = list(scores.values())
    heads = "".join(f"{f'seed {seed}':>9}" for seed in scores)
    width = 42

    def line(label: str, values: list[float]) -> str:
        return f"{label:{width}}" + "".join(f"{value:9.3f}" for value in values)

    lines = [
        "Questions about words that occur in no training; the share answered exactly.",
        "",
        f"{'words of 3 to 5 letters, as fine-tuned':{width}}{heads}",
        *(line(text, [s.questions[name] for s in everything]) for name, text in ROWS.items()),
        line("recycled / v2_ft", [ratio(s) for s in everything]),
        "",
        f"{'words of 6 letters, new in v2':{width}}{heads}",
        *(line(text, [s.long_questions[name] for s in everything]) for name, text in ROWS.items()),
        "",
        f"{'how new v2 is':{width}}{heads}",
        line("||v2 - v1|| / ||v1||", [s.v2_distance for s in everything]),
        line("||v1_ft - v1|| / ||v1||", [s.fine_tuning_distance for s in everything]),
        line("cosine(v1_ft - v1, v2_ft - v2)", [s.transfer_cosine for s in everything]),
        line("v1: loss on v2's pretraining data", [s.note_loss["v1"] for s in everything]),
        line("v2: loss on v2's pretraining data", [s.note_loss["v2"] for s in everything]),
        line("v1: notes on words of 6 letters", [s.long_notes["v1"] for s in everything]),
        line("v2: notes on words of 6 letters", [s.long_notes["v2"] for s in everything]),
        "",
    ]
    good = sum(map(passes, everything))
    lines.append(
        f"{'PASSED' if good == len(scores) else 'FAILED'}: in {good} of {len(scores)} seeds the "
        f"recycled model has at least {BAR} of the accuracy of v2_ft, and v2 alone at most "
        f"{MOST_OF_BASE}."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
