"""The grid: what is merged, as a mergekit configuration says it, and what that means by tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

LAYERS = 4
BASE, TUNED = "base", ("a", "b", "c")

DTYPES = ("bfloat16", "float32")
FORMS = ("scalar", "gradient", "filter")
LAYOUTS = ("models", "slices")

_RANGES = ((0, 2), (1, 4))  # half-open: layers of every model, one slice above the other
_WEIGHTS, _DENSITIES = (0.3, 0.45, 0.7), (0.5, 0.6, 0.4)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a method is asked for. ``each`` are parameters of every model but the base, ``shared``
    those of all: numbers that take the case's form; ``fixed`` are as they are. ``base`` says
    whether there is one, and ``listed`` whether it stands among the models as well."""

    models: int
    base: bool = False
    listed: bool = False
    each: dict[str, tuple[float, ...]] | None = None
    shared: dict[str, float] | None = None
    fixed: dict[str, Any] | None = None

    @property
    def varies(self) -> bool:
        return bool(self.each or self.shared)


def _weighted(**more: Any) -> dict[str, Any]:
    return {"weight": _WEIGHTS, **more}


_TRIMMED = _weighted(density=_DENSITIES)
_MIDDLE = _weighted(density=_DENSITIES, gamma=(0.02, 0.01, 0.05))
RECIPES = {
    "passthrough": Recipe(1, each={"scale": (0.3,)}),
    "linear": Recipe(3, each=_weighted()),
    "task_arithmetic": Recipe(3, base=True, each=_weighted(), fixed={"lambda": 0.7}),
    "ties": Recipe(3, base=True, each=_TRIMMED, fixed={"lambda": 0.7}),
    "breadcrumbs": Recipe(3, base=True, each=_MIDDLE),
    "breadcrumbs_ties": Recipe(3, base=True, each=_MIDDLE),
    "slerp": Recipe(1, base=True, listed=True, shared={"t": 0.3}),
    "nuslerp": Recipe(2, each=_weighted()),
    "multislerp": Recipe(3, each=_weighted()),
    "karcher": Recipe(3),
    "model_stock": Recipe(3, base=True),
    "nearswap": Recipe(1, base=True, listed=True, shared={"t": 0.005}),
    "sce": Recipe(3, base=True, shared={"select_topk": 0.4}),
    "arcee_fusion": Recipe(1, base=True, listed=True),
    "ram": Recipe(3, base=True),
    "dare_linear": Recipe(2, base=True, each=_TRIMMED),
    "dare_ties": Recipe(2, base=True, each=_TRIMMED),
    "della_linear": Recipe(2, base=True, each=_TRIMMED, fixed={"epsilon": 0.1}),
    "della": Recipe(2, base=True, each=_TRIMMED, fixed={"epsilon": 0.1}),
}
"""Every method that both have."""


@dataclass(frozen=True, slots=True)
class Case:
    """One configuration."""

    method: str
    dtype: str
    form: str
    layout: str

    @property
    def name(self) -> str:
        return f"{self.method}-{self.dtype}-{self.form}-{self.layout}"

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.method]

    @property
    def models(self) -> tuple[str, ...]:
        return TUNED[: self.recipe.models]

    def config(self, models: Path) -> dict[str, Any]:
        """The configuration, of the models in a folder."""
        recipe = self.recipe
        written: dict[str, Any] = {"merge_method": self.method, "dtype": self.dtype}
        if recipe.base:
            written["base_model"] = str(models / BASE)
        shared = {name: self.formed(value) for name, value in (recipe.shared or {}).items()}
        if shared or recipe.fixed:
            written["parameters"] = {**shared, **(recipe.fixed or {})}
        if self.layout == "models":
            written["models"] = list(self._entries(models, recipe.listed, {}))
        else:
            written["slices"] = [
                {"sources": list(self._entries(models, recipe.base, {"layer_range": list(part)}))}
                for part in _RANGES
            ]
        return written

    def _entries(self, models: Path, base: bool, more: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if base:
            yield {"model": str(models / BASE), **more}
        for place, name in enumerate(self.models):
            own = {key: self.formed(of[place]) for key, of in (self.recipe.each or {}).items()}
            yield {"model": str(models / name), **more, **({"parameters": own} if own else {})}

    def formed(self, value: float) -> Any:
        """A number in the case's form."""
        low, high = round(value * 0.5, 6), round(value * 1.2, 6)
        if self.form == "gradient":
            return [low, value, high]
        if self.form == "filter":
            attention = {"filter": "self_attn", "value": high}
            return [attention, {"filter": "mlp", "value": low}, {"value": value}]
        return value

    def value(self, number: float, tensor: str) -> float:
        """What a number in the case's form is for a tensor of the output."""
        formed = self.formed(number)
        if self.form == "filter":
            fits = (each["value"] for each in formed if each.get("filter", "") in tensor)
            return float(next(fits))
        if self.form == "gradient":
            place = self._depth(tensor) * (len(formed) - 1)
            below = min(int(place), len(formed) - 2)
            return float(formed[below] + (place - below) * (formed[below + 1] - formed[below]))
        return number

    def origin(self, tensor: str) -> str:
        """The tensor of every model that one of the output is made of."""
        layer = _layer(tensor)
        if layer is None or self.layout == "models":
            return tensor
        _, index, (first, _) = self._slice(layer)
        return re.sub(r"layers\.\d+", f"layers.{first + index}", tensor)

    def _depth(self, tensor: str) -> float:
        layer = _layer(tensor)
        if layer is None:
            return 0.0
        if self.layout == "models":
            return layer / (LAYERS - 1)
        count, index, _ = self._slice(layer)
        return index / (count - 1)

    def _slice(self, layer: int) -> tuple[int, int, tuple[int, int]]:
        """Of an output's layer: its slice's number of layers, its place there, and the range."""
        for first, stop in _RANGES:
            if layer < stop - first:
                return stop - first, layer, (first, stop)
            layer -= stop - first
        raise ValueError("no such layer")


def _layer(tensor: str) -> int | None:
    found = re.search(r"layers\.(\d+)\.", tensor)
    return None if found is None else int(found[1])


def grid(
    methods: Iterable[str], dtypes: Iterable[str], forms: Iterable[str], layouts: Iterable[str]
) -> list[Case]:
    """Every combination; methods without numbers have no forms."""
    return [
        Case(*each)
        for each in product(methods, dtypes, forms, layouts)
        if RECIPES[each[0]].varies or each[2] == "scalar"
    ]
