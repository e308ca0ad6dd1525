"""What mergekit makes of a configuration, written down plainly, in float64 and in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tiny_llamas import layer_of, named

Tensors = Mapping[str, np.ndarray]
Weights = list[float]


def evaluated(setting: Any, name: str, t: float) -> float | None:
    """One setting: a value, a gradient, or a list of both with filters."""
    if isinstance(setting, int | float):
        return float(setting)
    if all(isinstance(each, int | float) for each in setting):
        scaled = t * (len(setting) - 1)
        low = int(scaled)
        high = min(len(setting) - 1, low + 1)
        return (1 - (scaled - low)) * setting[low] + (scaled - low) * setting[high]
    for each in setting:
        if each.get("filter") in (None, "*") or each["filter"] in name:
            return evaluated(each["value"], name, t)
    return None


def first(places: list[Any], name: str, t: float) -> float | None:
    """What the first place says that says anything."""
    found = (evaluated(each, name, t) for each in places if each is not None)
    return next((each for each in found if each is not None), None)


def merged(config: Mapping[str, Any], models: Mapping[str, Tensors]) -> dict[str, np.ndarray]:
    """The tensors of the result; names of models are the keys of ``models``."""
    counts = {name: _layers(tensors) for name, tensors in models.items()}
    slices = config.get("slices")
    if slices is None:
        inputs = [dict(each) for each in config["models"]]
        base = config.get("base_model")
        if base is not None and base not in [each["model"] for each in inputs]:
            inputs.append({"model": base})
        slices = [{"sources": inputs}]
        for each in inputs:
            each["layer_range"] = [0, counts[each["model"]]]
    result: dict[str, np.ndarray] = {}
    any_model = next(iter(models.values()))
    layer = 0
    for index, part in enumerate(slices):
        ranges = [each["layer_range"] for each in part["sources"]]
        count = ranges[0][1] - ranges[0][0]
        outside = [name for name in any_model if layer_of(name) is None]
        for name in outside:
            if ("embed" in name and index == 0) or ("embed" not in name and part is slices[-1]):
                result[name] = _tensor(config, part, models, name, [name] * len(ranges), 0.0)
        for offset in range(count):
            t = offset / (count - 1) if count > 1 else 1.0
            for name in any_model:
                if layer_of(name) == 0:
                    own = [named(name, start + offset) for start, _ in ranges]
                    out = named(name, layer)
                    result[out] = _tensor(config, part, models, out, own, t)
            layer += 1
    return result


def _layers(tensors: Tensors) -> int:
    return 1 + max(layer for layer in map(layer_of, tensors) if layer is not None)


def _tensor(
    config: Mapping[str, Any],
    part: Mapping[str, Any],
    models: Mapping[str, Tensors],
    name: str,
    own_names: list[str],
    t: float,
) -> np.ndarray:
    base = part.get("base_model", config.get("base_model"))
    around = [part.get("parameters", {}), config.get("parameters", {})]

    def shared(key: str, default: Any) -> Any:
        found = first([each.get(key) for each in around], name, t)
        return default if found is None else found

    def of(source: Mapping[str, Any], own: str, key: str, default: Any) -> Any:
        places = [source.get("parameters", {}), *around]
        found = first([each.get(key) for each in places], own, t)
        return default if found is None else found

    sources = list(zip(part["sources"], own_names, strict=True))
    tensors = [models[each["model"]][own].astype(np.float64) for each, own in sources]
    bases = [x for (each, _), x in zip(sources, tensors, strict=True) if each["model"] == base]
    others = [
        (each, own, x)
        for (each, own), x in zip(sources, tensors, strict=True)
        if each["model"] != base
    ]
    method = config["merge_method"]
    if method in ("linear", "passthrough"):
        key = "weight" if method == "linear" else "scale"
        weights = [of(each, own, key, 1.0) for each, own in sources]
        total = sum(w * x for w, x in zip(weights, tensors, strict=True))
        return total / sum(weights) if method == "linear" and shared("normalize", 1) else total
    if method == "slerp":
        return _slerp(shared("t", None), bases[0], others[0][2])
    if method == "nearswap":
        change = others[0][2] - bases[0]
        return bases[0] + np.clip(change, -shared("t", None), shared("t", None))
    if method == "model_stock":
        return _model_stock(bases[0], [x for *_, x in others])
    deltas = [x - bases[0] for *_, x in others]
    if method == "sce":
        return bases[0] + _sce(deltas, shared("select_topk", 1.0))
    weights = [of(each, own, "weight", None) for each, own, _ in others]
    if method == "nuslerp":
        along_columns = [each.T if each.ndim > 1 else each for each in deltas]
        found = _rows(_arc, weights[1] / sum(weights), *along_columns)
        return bases[0] + (found.T if found.ndim > 1 else found)
    if method == "ties":
        densities = [of(each, own, "density", 1.0) for each, own, _ in others]
        deltas = [_trimmed(each, d) for each, d in zip(deltas, densities, strict=True)]
    assert method in ("ties", "task_arithmetic")
    mixed = _mixed(deltas, weights, agree=method == "ties", normalize=method == "ties")
    return bases[0] + shared("lambda", 1.0) * mixed


def _slerp(t: float, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    cosine = float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


_arc = _slerp


def _rows(
    between: Callable[[float, np.ndarray, np.ndarray], np.ndarray],
    t: float,
    a: np.ndarray,
    b: np.ndarray,
) -> np.ndarray:
    if a.ndim == 1:
        return between(t, a, b)
    return np.stack([between(t, x, y) for x, y in zip(a, b, strict=True)])


def _model_stock(base: np.ndarray, models: list[np.ndarray]) -> np.ndarray:
    deltas = [(each - base).reshape(-1) for each in models]
    pairs = [(x, y) for i, x in enumerate(deltas) for y in deltas[i + 1 :]]
    norm = np.linalg.norm
    cosine = float(np.mean([x @ y / norm(x) / norm(y) for x, y in pairs]))
    count = len(models)
    t = count * cosine / (1 + (count - 1) * cosine)
    return t * sum(models) / count + (1 - t) * base


def _trimmed(delta: np.ndarray, density: float) -> np.ndarray:
    if density >= 1:
        return delta
    count = max(1, int(density * delta.size))
    limit = np.sort(np.abs(delta).reshape(-1))[-count]
    return np.where(np.abs(delta) >= limit, delta, 0.0)


def _mixed(
    deltas: list[np.ndarray], weights: Weights, *, agree: bool, normalize: bool
) -> np.ndarray:
    weighted = [w * each for w, each in zip(weights, deltas, strict=True)]
    if not agree:
        return sum(weighted)
    sign = np.where(sum(weighted) >= 0, 1.0, -1.0)
    masks = [np.sign(each) == sign for each in weighted]
    total = sum(np.where(mask, each, 0.0) for mask, each in zip(masks, weighted, strict=True))
    counted = sum(w * mask for w, mask in zip(weights, masks, strict=True))
    return total / np.where(counted == 0, 1.0, counted) if normalize else total


def _sce(deltas: list[np.ndarray], share: float) -> np.ndarray:
    variance = np.var(np.stack(deltas), axis=0)
    if share < 1:
        count = int(share * np.count_nonzero(variance))
        limit = np.sort(variance.reshape(-1))[-count]
        deltas = [np.where(variance >= limit, each, 0.0) for each in deltas]
    squares = [float((each**2).mean()) for each in deltas]
    weights = [each / sum(squares) for each in squares]
    sign = np.where(sum(deltas) >= 0, 1.0, -1.0)
    masks = [np.sign(each) == sign for each in deltas]
    parts = zip(weights, masks, deltas, strict=True)
    total = sum(w * np.where(mask, each, 0.0) for w, mask, each in parts)
    counted = sum(w * mask for w, mask in zip(weights, masks, strict=True))
    return total / np.where(counted == 0, 1.0, counted)
