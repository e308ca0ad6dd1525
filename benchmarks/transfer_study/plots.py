"""The plots of the study; means over seeds, with the range of the seeds where there are several."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from benchmarks.transfer_study.comparisons import (
    PAIRS,
    barrier,
    between,
    share,
    shown,
    transferred,
)
from benchmarks.transfer_study.recipe import BASES
from benchmarks.transfer_study.tables import Measures

_DPI = 90
Seeds = Sequence[Measures]


def draw(seeds: Seeds, folder: Path) -> None:
    """Write each plot as a PNG named after it."""
    for make in (matrix, curves, iterative, barriers, lines, scaling):
        figure = make(seeds)
        figure.tight_layout()
        # Without the software's version the same figures give the same bytes.
        figure.savefig(folder / f"{make.__name__}.png", dpi=_DPI, metadata={"Software": None})
        plt.close(figure)


def _mean(seeds: Seeds, pick: Callable[[Measures], float]) -> float:
    return statistics.fmean(pick(measures) for measures in seeds)


def _line(axes: Any, x: Sequence[float], rows: Sequence[Sequence[float]], **style: Any) -> None:
    """The mean of some rows over x, and the range between them."""
    columns = list(zip(*rows, strict=True))
    (line,) = axes.plot(x, [statistics.fmean(column) for column in columns], **style)
    if len(rows) > 1:
        low, high = [min(column) for column in columns], [max(column) for column in columns]
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def matrix(seeds: Seeds) -> Any:
    """Accuracy of every base with every delta, as a heat map."""
    values = [
        [_mean(seeds, lambda m, d=delta, b=base: transferred(m, d, b)) for base in BASES]
        for delta in BASES
    ]
    figure, axes = plt.subplots(figsize=(4.4, 3.8))
    image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            colour = "black" if value > 0.6 else "white"
            weight = "bold" if row == column else "normal"
            axes.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                color=colour,
                weight=weight,
            )
    axes.set_xticks(range(len(BASES)), [shown(base) for base in BASES])
    axes.set_yticks(range(len(BASES)), [f"Δ{base[1:]}" for base in BASES])
    axes.set_xlabel("added to the base")
    axes.set_title("Exact answers of base + delta", fontsize=10)
    figure.colorbar(image, shrink=0.85)
    return figure


def curves(seeds: Seeds) -> Any:
    """Fine-tuning from a base, with and without the delta of the version before."""
    figure, panels = plt.subplots(1, len(BASES) - 1, figsize=(10, 2.9), sharey=True)
    for axes, old, new in zip(panels, BASES, BASES[1:], strict=False):
        starts = {
            f"from {shown(new)}": ("base", "tab:grey"),
            f"from {shown(new)} + Δ{old[1:]}": ("direct", "tab:blue"),
            f"from {shown(new)} + Δiter": ("iterative", "tab:orange"),
        }
        for label, (start, colour) in starts.items():
            found = [measures["curves"][start][new] for measures in seeds]
            rows = [[point["accuracy"] for point in curve] for curve in found]
            steps = [point["step"] for point in found[0]]
            _line(axes, steps, rows, label=label, color=colour, marker=".")
        axes.set_xlabel("steps of fine-tuning")
        axes.legend(fontsize=7, loc="lower right")
    panels[0].set_ylabel("exact answers")
    return figure


def iterative(seeds: Seeds) -> Any:
    """Starts and ends of direct and iterative recycling-then-finetuning."""
    figure, axes = plt.subplots(figsize=(5, 3.2))
    numbers = range(2, len(BASES) + 1)
    for start, colour in (
        ("base", "tab:grey"),
        ("direct", "tab:blue"),
        ("iterative", "tab:orange"),
    ):
        for place, style, when in ((0, "--", "before"), (-1, "-", "after")):
            rows = [
                [measures["curves"][start][b][place]["accuracy"] for b in BASES[1:]]
                for measures in seeds
            ]
            label = f"{start}, {when} fine-tuning"
            _line(axes, numbers, rows, label=label, color=colour, linestyle=style, marker=".")
    axes.set_xticks(list(numbers), [shown(base) for base in BASES[1:]])
    axes.set_ylabel("exact answers")
    axes.legend(fontsize=7)
    return figure


def barriers(seeds: Seeds) -> Any:
    """The loss between bases, and its barrier against the quality of the transfer."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
    for old, new in combinations(BASES, 2):
        found = [between(measures, old, new) for measures in seeds]
        rows = [[point["loss"] for point in line] for line in found]
        colour = f"C{BASES.index(old)}"
        label = f"from {shown(old)}" if BASES.index(new) == BASES.index(old) + 1 else None
        _line(left, [point["at"] for point in found[0]], rows, label=label, color=colour)
    left.set_xlabel("on the line to a later base")
    left.set_ylabel("loss of notes (nats)")
    left.legend(fontsize=8)
    for distance in range(1, len(BASES)):
        points = [
            (barrier(between(measures, d, b)), share(measures, d, b))
            for measures in seeds
            for d, b in PAIRS
            if abs(BASES.index(d) - BASES.index(b)) == distance
        ]
        right.scatter(*zip(*points, strict=True), label=f"{distance} apart", s=22)
    right.set_xlabel("barrier between the bases (nats)")
    right.set_ylabel("share of FT's accuracy")
    right.legend(fontsize=8)
    return figure


def lines(seeds: Seeds) -> Any:
    """The loss along the line to the own fine-tune, on each base."""
    figure, panels = plt.subplots(1, len(BASES), figsize=(11, 2.8), sharey=True)
    for axes, base in zip(panels, BASES, strict=True):
        for delta in (other for other in BASES if other != base):
            found = [measures["lines"][delta][base] for measures in seeds]
            rows = [[point["loss"] for point in line] for line in found]
            colour = f"C{BASES.index(delta)}"
            _line(axes, [p["at"] for p in found[0]], rows, label=f"Δ{delta[1:]}", color=colour)
        axes.set_title(f"{shown(base)} + Δ → FT({shown(base)})", fontsize=9)
        axes.legend(fontsize=7)
    panels[0].set_ylabel("loss (nats)")
    return figure


def scaling(seeds: Seeds) -> Any:
    """Accuracy by how much of the delta is added."""
    figure, axes = plt.subplots(figsize=(4.8, 3.2))
    for delta, bases in seeds[0]["scalings"].items():
        for base in bases:
            found = [measures["scalings"][delta][base] for measures in seeds]
            rows = [[point["accuracy"] for point in points] for points in found]
            label = f"{shown(base)} + α Δ{delta[1:]}"
            _line(axes, [point["at"] for point in found[0]], rows, label=label, marker=".")
    axes.set_xlabel("α")
    axes.set_ylabel("exact answers")
    axes.legend(fontsize=8)
    return figure
