"""A table of scales as a picture. Needs matplotlib, which nothing else here does."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from mergeengine.analysis.scales import Scales
from mergeengine.errors import OutputError, ResourceError

_PNG = b"\x89PNG"


def draw(tables: tuple[Scales, ...], title: str, path: Path) -> None:
    """Write a heat map of each table, one below the other, to a PNG file.

    ResourceError without matplotlib; OutputError where the file cannot be written.
    """
    try:
        figures: Any = import_module("matplotlib.figure")
    except ImportError:
        raise ResourceError(
            "--png needs matplotlib, which is not installed: pip install 'mergeengine[plot]'"
        ) from None
    _check_place(path)
    tables = tuple(table for table in tables if table.layers) or tables
    width = max(4.0, 2.0 + 0.6 * max((len(table.kinds) for table in tables), default=1))
    heights = [max(2.0, 1.5 + 0.2 * len(table.layers)) for table in tables] or [2.0]
    figure = figures.Figure(figsize=(width, sum(heights)), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)
    most = max((abs(v) for t in tables for ends in t.values.values() for v in ends), default=1.0)
    for table, (axes,) in zip(tables, grid, strict=False):
        image = axes.imshow(
            _means(table), cmap="RdBu", vmin=-(most or 1.0), vmax=most or 1.0, aspect="auto"
        )
        axes.set_title(table.source)
        axes.set_ylabel("layer")
        axes.set_xticks(range(len(table.kinds)), table.kinds, rotation=60, ha="right")
        step = max(1, len(table.layers) // 20)
        axes.set_yticks(range(0, len(table.layers), step), table.layers[::step])
        figure.colorbar(image, ax=axes, label="scale")
    try:
        figure.savefig(path, format="png", dpi=120, metadata={"Software": None})
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None


def _means(table: Scales) -> list[list[float]]:
    """The middle of each cell's ends; nothing (NaN) where a layer has no such module."""
    none = (float("nan"), float("nan"))
    return [
        [sum(table.values.get((layer, kind), none)) / 2 for kind in table.kinds]
        for layer in table.layers
    ] or [[float("nan")]]


def _check_place(path: Path) -> None:
    """Only pictures are replaced."""
    try:
        with path.open("rb") as file:
            beginning = file.read(4)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
    if beginning and beginning != _PNG:
        raise OutputError(f"{path}: there is a file of another kind; choose another name")
