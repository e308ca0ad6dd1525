"""Every method once more, naively: whole tensors in memory, float64, as its paper has it.

Each takes the target, the values of the sources (deltas or models), their weights, their own
parameters and the method's, and gives the change or the merge.
"""

from collections.abc import Callable
from itertools import combinations
from math import acos, cos, sin
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Own = list[dict[str, Any]]


def top(values: Array, count: int) -> Array:
    """True at the elements of largest magnitude, of equal ones the first."""
    order = np.argsort(-np.abs(values).reshape(-1), kind="stable")[:count]
    chosen = np.zeros(values.size, dtype=bool)
    chosen[order] = True
    return chosen.reshape(values.shape)


def combined(values: list[Array], weights: list[float], agree: bool, p: dict[str, Any]) -> Array:
    weighted = [w * v for w, v in zip(weights, values, strict=True)]
    total = sum(weighted)
    divisor: Any = sum(weights)
    divisor = divisor if abs(divisor) >= 1e-8 else 1.0
    if agree:
        sign = np.where(total >= 0, 1.0, -1.0)
        masks = [np.sign(v) == sign for v in weighted]
        total = sum(np.where(m, v, 0.0) for m, v in zip(masks, weighted, strict=True))
        divisor = sum(m * w for m, w in zip(masks, weights, strict=True))
        divisor = np.where(divisor == 0, 1.0, divisor)
    return p.get("lambda", 1.0) * (total / divisor if p.get("normalize") else total)


def transfer(t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any]) -> Array:
    return sum(a * b for a, b in zip(w, x, strict=True))


def plain(t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any]) -> Array:
    return combined(x, w, False, p)


def passthrough(t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any]) -> Array:
    return w[0] * x[0]


def ties(t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any]) -> Array:
    kept = [
        np.where(top(v, max(1, int(round(o["density"] * v.size, 9)))), v, 0.0)
        if o["density"]
        else 0 * v
        for v, o in zip(x, own, strict=True)
    ]
    return combined(kept, w, True, p)


def breadcrumbs(
    t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any], agree: bool = False
) -> Array:
    kept = []
    for v, o in zip(x, own, strict=True):
        if o["density"] == 1:
            kept.append(v)
            continue
        n = v.size
        count = int(round(o["density"] * n, 9))
        dropped = int(round(o["gamma"] * n, 9))
        smallest = n - count - dropped
        if smallest < 0:
            dropped += smallest
        kept.append(np.where(top(v, count + dropped) & ~top(v, dropped), v, 0.0))
    return combined(kept, w, agree, p)


def with_signs(t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any]) -> Array:
    return breadcrumbs(t, x, w, own, p, True)


def arc(a: Array, b: Array, t: float, straight: float) -> Array:
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    cosine = float(a.reshape(-1) @ b.reshape(-1)) / (lengths[0] * lengths[1]) if all(lengths) else 0
    cosine = min(1.0, max(-1.0, cosine))
    if abs(cosine) > straight:
        return (1 - t) * a + t * b
    angle = acos(cosine)
    return (sin((1 - t) * angle) * a + sin(t * angle) * b) / sin(angle)


def slerp(t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any]) -> Array:
    return arc(x[0], x[1], p["t"], 0.9995)


def nuslerp(t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any]) -> Array:
    share = 0.5 if abs(sum(w)) < 1e-6 else w[1] / sum(w)
    limit = 1 - 1e-14
    if p["along"] == "tensor" or t.ndim < 2:
        return arc(x[0], x[1], share, limit)
    axis = -1 if p["along"] == "rows" else 0
    a, b = (np.moveaxis(each, axis, -1) for each in x)
    found = np.empty_like(a)
    for place in np.ndindex(a.shape[:-1]):
        found[place] = arc(a[place], b[place], share, limit)
    return np.moveaxis(found, -1, axis)


def multislerp(t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any]) -> Array:
    weights = [each / sum(w) for each in w] if p["normalize_weights"] else w
    norms = [np.linalg.norm(v) for v in x]
    units = [v / n if n else 0 * v for v, n in zip(x, norms, strict=True)]
    mean = sum(a * u for a, u in zip(weights, units, strict=True))
    size = np.linalg.norm(mean)
    if size < p["eps"]:
        return sum(a * v for a, v in zip(weights, x, strict=True))
    mean = mean / size
    tangent = sum(a * (u - np.sum(u * mean) * mean) for a, u in zip(weights, units, strict=True))
    angle = np.linalg.norm(tangent)
    length = sum(a * n for a, n in zip(weights, norms, strict=True))
    if angle < p["eps"]:
        return length * mean
    return length * (mean * cos(angle) + tangent * sin(angle) / angle)


def karcher(t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any]) -> Array:
    norms = [np.linalg.norm(v) for v in x]
    units = [v / n for v, n in zip(x, norms, strict=True) if n]
    if not units:
        return 0 * t
    mean = sum(units) / len(units)
    mean = mean / np.linalg.norm(mean) if np.linalg.norm(mean) >= p["tol"] else units[0]
    for _ in range(p["max_iter"]):
        step = 0 * mean
        for unit in units:
            near = min(1.0, max(-1.0, float(np.sum(unit * mean))))
            angle = acos(near)
            if sin(angle) > p["tol"]:
                step = step + angle / sin(angle) * (unit - near * mean) / len(units)
        angle = float(np.linalg.norm(step))
        if angle < p["tol"]:
            break
        mean = mean * cos(angle) + step * sin(angle) / angle
        mean = mean / np.linalg.norm(mean)
    return sum(norms) / len(norms) * mean


def model_stock(t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any]) -> Array:
    rows = p["filter_wise"] and t.ndim > 1
    stacked = [v.reshape(-1, v.shape[-1]) if rows else v.reshape(1, -1) for v in x]
    found = np.zeros_like(stacked[0])
    for row in range(len(stacked[0])):
        parts = [v[row] for v in stacked]
        cosines = []
        for a, b in combinations(parts, 2):
            below = np.linalg.norm(a) * np.linalg.norm(b)
            cosines.append(float(a @ b) / below if below else 0.0)
        mean, count = sum(cosines) / len(cosines), len(x)
        below = 1 + (count - 1) * mean
        found[row] = (count * mean / below if below else 0.0) * sum(parts) / count
    return found.reshape(t.shape)


def nearswap(t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any]) -> Array:
    size = np.abs(x[0])
    return np.where(size > 0, np.minimum(1.0, p["t"] / np.where(size > 0, size, 1.0)), 0) * x[0]


def ram(t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any]) -> Array:
    changed = [np.abs(v) > p["epsilon"] for v in x]
    total = sum(np.where(c, v, 0) for c, v in zip(changed, x, strict=True))
    return total / np.maximum(1, sum(c.astype(int) for c in changed))


def sce(t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any]) -> Array:
    if p["select_topk"] < 1:
        mean = sum(x) / len(x)
        variance = sum((v - mean) * (v - mean) for v in x) / len(x)
        chosen = top(variance, int(round(p["select_topk"] * np.count_nonzero(variance), 9)))
        x = [np.where(chosen, v, 0.0) for v in x]
    means = [float(np.mean(v * v)) for v in x]
    weights = [m / sum(means) if sum(means) >= 1e-6 else 1 / len(x) for m in means]
    sign = np.where(sum(x) >= 0, 1.0, -1.0)
    masks = [np.sign(v) == sign for v in x]
    total = sum(np.where(m, a * v, 0) for m, a, v in zip(masks, weights, x, strict=True))
    below = sum(m * a for m, a in zip(masks, weights, strict=True))
    return total / np.where(below == 0, 1.0, below)


def arcee_fusion(t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any]) -> Array:
    def softmax(values: Array) -> Array:
        grown = np.exp(values)
        return grown / (grown.sum(-1, keepdims=True) if values.ndim else grown) + 1e-8

    one, other = softmax(t + x[0]), softmax(t)
    apart = one * np.log(one / other)
    apart = apart.sum(-1, keepdims=True) if t.ndim else apart
    importance = np.abs(x[0]) * apart
    ordered = np.sort(np.abs(importance).reshape(-1))
    median = ordered[(ordered.size - 1) // 2]
    low, high = np.quantile(ordered, [0.25, 0.75])
    return np.where(importance >= median + p["spread"] * (high - low), x[0], 0.0)


def lines(t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any]) -> Array:
    return p["depth_scale"] * transfer(t, x, w, own, p)


def consensus(t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any]) -> Array:
    total = transfer(t, x, w, own, p)
    uses = sum(
        (np.abs(v) >= o["tall"] * np.abs(total - v)).astype(int)
        for v, o in zip(x, own, strict=True)
    )
    return p["lambda"] * np.where(uses >= p["least_agreeing"], total, 0.0)


def iso_c(t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any]) -> Array:
    total = transfer(t, x, w, own, p)
    if t.ndim != 2:
        return p["lambda"] * total / len(x)
    u, s, v = np.linalg.svd(total, full_matrices=False)
    return p["lambda"] * s.mean() * u @ v


def tsv(t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any]) -> Array:
    if t.ndim != 2:
        return p["lambda"] * transfer(t, x, w, own, p) / len(x)
    rank = max(1, min(t.shape) // len(x))
    parts = [np.linalg.svd(a * v, full_matrices=False) for a, v in zip(w, x, strict=True)]
    u = np.concatenate([part[0][:, :rank] for part in parts], 1)
    s = np.concatenate([part[1][:rank] for part in parts])
    v = np.concatenate([part[2][:rank] for part in parts])

    def polar(matrix: Array) -> Array:
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
        return left @ right

    return p["lambda"] * polar(u) @ np.diag(s) @ polar(v)


def widen(t: Array, x: list[Array], w: list[float], own: Own, p: dict[str, Any]) -> Array:
    if t.ndim == 0:
        return transfer(t, x, w, own, p) / len(x)

    def ranked(values: Array) -> Array:
        ranks = np.empty(values.size)
        ranks[np.argsort(values, kind="stable")] = np.arange(1, values.size + 1)
        return ranks

    def scored(divergences: list[Array]) -> list[Array]:
        ranks = [ranked(each) for each in divergences]
        grown = [np.exp(rank / rank.size) for rank in ranks]
        return [
            np.where(r > p["above_average"] * r.mean(), p["calibrated"], g / sum(grown))
            for r, g in zip(ranks, grown, strict=True)
        ]

    if t.ndim == 1:
        scores = scored([np.abs(v) for v in x])
    else:
        others = tuple(range(t.ndim - 1))
        models = [t + v for v in x]
        base = np.sqrt((t * t).sum(others))
        norms = [np.sqrt((m * m).sum(others)) for m in models]
        lengths = scored([np.abs(n - base) for n in norms])
        turned = scored(
            [1 - (m * t).sum(others) / (n * base) for m, n in zip(models, norms, strict=True)]
        )
        scores = [(a + b) / 2 for a, b in zip(lengths, turned, strict=True)]
    return sum(s * (a * v) for s, a, v in zip(scores, w, x, strict=True))


Oracle = Callable[[Array, list[Array], list[float], Own, dict[str, Any]], Array]
ORACLES: dict[str, Oracle] = {
    "transfer": transfer,
    "task_arithmetic": plain,
    "linear": plain,
    "passthrough": passthrough,
    "ties": ties,
    "breadcrumbs": breadcrumbs,
    "breadcrumbs_ties": with_signs,
    "slerp": slerp,
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "karcher": karcher,
    "model_stock": model_stock,
    "nearswap": nearswap,
    "ram": ram,
    "sce": sce,
    "arcee_fusion": arcee_fusion,
    "lines": lines,
    "consensus": consensus,
    "iso_c": iso_c,
    "tsv": tsv,
    "widen": widen,
}
