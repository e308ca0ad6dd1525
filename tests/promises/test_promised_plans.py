"""Whole plans, drawn at random: the output is what the documentation says, in float64.

The oracle knows the documentation alone: whole tensors in memory, its own reading of selectors,
schedules and masks. All values lie on grids on which deltas are exact, so that what is chosen by
size or sign is the same in every arithmetic, and ties are as frequent as in real 16-bit weights.
"""

import math
import re
import tempfile
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lineage import CHUNK, CONFIG, weights, write_model, write_plan
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergeengine.execution import native
from mergeengine.workflow.run import run

Array = NDArray[np.float64]
Node = dict[str, Any]

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
WIDTH = 6
KINDS = {
    "attention": r"q_proj",
    "q_proj": r"q_proj",
    "mlp": r"\.mlp\.",
    "conv": r"\.conv\.",
    "norm": r"norm",
    "embedding": r"embed_tokens",
    "head": r"lm_head",
}
GLOBS = ["*", "*.mlp.*", "model.layers.*", "*proj.weight", "*.?.mlp.up_proj.weight", "lm_head.*"]
REGEXES = [
    r"\.(q|up)_proj\.",
    r"^model\.",
    r"norm",
    r"layers\.[02]\.",
    r"weight$$",
]  # `$$` is a dollar sign in plans
NUMBERS = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0, 1.5, -0.4, -1.0])
FACTORS = st.sampled_from([0.0, 0.25, 0.6, 1.0, 1.0, -0.5, 2.0])
SHARES = st.sampled_from([0.01, 0.2, 0.29, 0.5, 0.9, 1.0])
RATIOS = st.sampled_from([0.05, 0.3, 1.0])


# ---- the model


def shapes_of(layers: int, big: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (21, WIDTH)}
    for layer in range(layers):
        wide = big and layer == layers - 1
        parts = {
            "self_attn.q_proj.weight": (WIDTH, WIDTH),
            "mlp.up_proj.weight": (CHUNK // WIDTH + 10 if wide else 10, WIDTH),
            "mlp.conv.weight": (3, 4, 5),
            "input_layernorm.weight": (WIDTH,),
            "gate_scale": (),
        }
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in parts.items()}
    return shapes | {"model.norm.weight": (WIDTH,), "lm_head.weight": (21, WIDTH)}


def on_a_grid(shape: tuple[int, ...], dtype: torch.dtype, generator: np.random.Generator) -> Tensor:
    """Multiples of 2⁻⁸ or 2⁻²⁰ below 1: differences of them are exact in float32."""
    bits = 20 if dtype == torch.float32 else 8
    numbers = generator.integers(-(2**bits) + 1, 2**bits, size=shape)
    return torch.from_numpy(np.asarray(numbers / 2.0**bits)).to(dtype)


# ---- the oracle: selectors


def layer_of(name: str) -> int | None:
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


def in_layers(written: int | str, layer: int, count: int) -> bool:
    if written in ("even", "odd"):
        return layer % 2 == ("even", "odd").index(str(written))
    found = re.fullmatch(r"(-?\d+)(-)?(-?\d+)?", str(written))
    assert found
    first = int(found[1])
    last = first if not found[2] else int(found[3]) if found[3] else count - 1
    first, last = (number + count if number < 0 else number for number in (first, last))
    return first <= layer <= last


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def selects(selector: Node, name: str, count: int, selections: Node) -> bool:
    def inner(each: Node) -> bool:
        return selects(each, name, count, selections)

    layer = layer_of(name)
    tests: dict[str, Callable[[Any], bool]] = {
        "layers": lambda each: layer is not None and in_layers(each, layer, count),
        "match": lambda each: fnmatchcase(name, each),
        "regex": lambda each: re.search(each.replace("$$", "$"), name) is not None,
        "kind": lambda each: re.search(KINDS[each], name) is not None,
        "selection": lambda each: inner(selections[each]),
        "any": inner,
    }
    held = [any(map(tests[key], as_list(selector[key]))) for key in tests if key in selector]
    held += [inner(each) for each in as_list(selector.get("all", []))]
    held += [not inner(each) for each in as_list(selector.get("not", []))]
    return all(held)


# ---- the oracle: numbers over depth


def depth_of(name: str, count: int) -> float:
    layer = layer_of(name)
    if layer is None:
        return 0.0 if "embed" in name else 1.0
    return layer / (count - 1) if count > 1 else 1.0


CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cosine": lambda x: (1 - math.cos(math.pi * x)) / 2,
    "quadratic": lambda x: x * x,
    "sqrt": math.sqrt,
}


def number(form: Any, name: str, count: int) -> float:
    """What a form of scaling other than rules and norms gives a tensor."""
    if isinstance(form, int | float):
        return float(form)
    if isinstance(form, list):
        form = {"points": form}
    layer, depth = layer_of(name), depth_of(name, count)
    if layer is None:
        end = "before" if "embed" in name else "after"
        if end in form.get("outside", {}):
            return float(form["outside"][end])
    if "points" in form:
        points = form["points"]
        return float(np.interp(depth, np.linspace(0, 1, len(points)), points))
    if "from" in form:
        curve = CURVES[form.get("curve", "linear")]
        return float(form["from"] + (form["to"] - form["from"]) * curve(depth))
    if "shallow" in form:
        return float(form["shallow"] + (form["deep"] - form["shallow"]) * depth)
    if layer is not None:
        for written, value in form["layers"].items():
            if in_layers(written, layer, count):
                return float(value)
    elif "default" not in form:  # the value of depth 0 or 1
        return number(form, f"model.layers.{0 if depth == 0 else count - 1}.x", count)
    return float(form["default"])


def coefficient(form: Any, tensor: "Seen", target: Array, delta: Array) -> float:
    """A source's α: any form of scaling."""
    if isinstance(form, list) and isinstance(form[0], dict):
        rule = next(each for each in form if tensor.chosen_by(each))
        form = rule["value"]
    norm, whole = (float(np.sqrt((values**2).sum())) for values in (delta, target))
    if isinstance(form, dict) and "ratio" in form:
        ratio = number(form["ratio"], tensor.name, tensor.layers)
        return ratio * whole / norm if norm else 0.0
    if isinstance(form, dict) and "at_most" in form:
        value = number(form.get("value", 1.0), tensor.name, tensor.layers)
        most = number(form["at_most"], tensor.name, tensor.layers) * whole
        if norm == 0 or whole == 0:
            return 0.0
        return value if abs(value) * norm <= most else math.copysign(most / norm, value)
    return number(form, tensor.name, tensor.layers)


# ---- the oracle: masks


class Seen:
    """One tensor with all that its value depends on."""

    def __init__(self, name: str, layers: int, plan: Node) -> None:
        self.name, self.layers, self.plan = name, layers, plan

    def chosen_by(self, rule: Node) -> bool:
        return selects(rule, self.name, self.layers, self.plan["selections"])

    def entry(self, masks: list[Node]) -> Node:
        return next((each for each in masks if self.chosen_by(each)), {})


def ranked(values: Array, share: float, largest: bool) -> NDArray[np.bool_]:
    # in hundredths, as they are written: 0.29 of 100 are 29
    count = max(1, round(share * 100) * values.size // 100)
    size = np.abs(values).reshape(-1)
    kept = np.zeros(values.size, bool)
    kept[np.argsort(-size if largest else size, kind="stable")[:count]] = True
    return kept.reshape(values.shape)


def in_rows(rows: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    first, dash, last = rows.partition("-")
    last = last if dash else first
    places = np.arange(shape[0])
    kept = (places >= int(first)) & (places <= (int(last) if last else shape[0]))
    return np.broadcast_to(kept.reshape(-1, *(1 for _ in shape[1:])), shape)


class Masked:
    """A delta under masks, and where an arithmetic of less precision may choose otherwise."""

    def __init__(self, delta: Array, near: float) -> None:
        self.delta, self.near = delta, near
        self.projected = False
        self.size = np.abs(delta)  # of the terms, for the rounding that cancellation uncovers
        self.doubt = np.zeros(delta.shape, bool)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        self.delta = np.where(kept, self.delta, 0.0)

    def limit(self, at: float) -> None:
        """Elements whose size is about `at` are doubtful once the delta is no longer exact."""
        if self.projected:
            nonzero = self.delta != 0
            self.doubt |= nonzero & (np.abs(np.abs(self.delta) - at) <= self.near)

    def rank(self, share: float, largest: bool) -> None:
        if self.projected and self.doubt.any():
            self.doubt[...] = True
        kept = ranked(self.delta, share, largest)
        chosen = np.abs(self.delta[kept])
        self.limit(float(chosen.min() if largest else chosen.max()))
        self.keep(kept)

    def apply(
        self,
        entries: tuple[Node, Node],
        shift: Array,
        others: Mapping[str, Array],
        files: Mapping[str, Array],
    ) -> None:
        for key in ("orthogonal_to", "rows", "file", "above", "top/bottom", "sign"):
            for entry in entries:
                if key == "top/bottom":
                    for end in {"top", "bottom"} & entry.keys():
                        self.rank(entry[end], end == "top")
                elif key not in entry:
                    continue
                elif key == "orthogonal_to":
                    square = float((shift * shift).sum())
                    if square:
                        along = float((self.delta * shift).sum()) / square
                        part = entry.get("beta", 1.0) * along * shift
                        self.delta = self.delta - part
                        self.size = self.size + np.abs(part)
                        self.projected = True
                elif key == "rows":
                    self.keep(in_rows(entry[key], self.delta.shape))
                elif key == "file":
                    mask = files.get(entry[key], entry.get("default"))
                    self.delta = self.delta * mask
                    self.size = self.size * np.abs(mask)
                elif key == "above":
                    self.limit(entry[key])
                    self.keep(np.abs(self.delta) > entry[key])
                else:
                    other = shift if entry[key] == "target_shift" else others[entry[key][-2:]]
                    self.limit(0.0)
                    self.keep(self.delta * other > 0)


def expected(
    tensor: Seen,
    models: Mapping[str, Mapping[str, Tensor]],
    files: Mapping[str, Tensor],
    wide: bool,
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """The values, the size of the terms that they are sums of, and which are doubtful."""
    plan = tensor.plan
    of = {role: found[tensor.name].double().numpy() for role, found in models.items()}
    read = {
        file: found[tensor.name].double().numpy()
        for file, found in files.items()
        if tensor.name in found
    }
    target = value = of["target"]
    doubt = np.zeros(target.shape, bool)
    size = np.abs(target)
    shared = tensor.entry(plan["masks"])
    if "keep" in shared:
        kept = target if shared["keep"] == "target" else of[f"ft-{shared['of']}"]
        return kept, np.zeros(kept.shape), doubt
    deltas = {
        each["name"]: of[f"ft-{each['name']}"] - of[f"base-{each['name']}"]
        for each in plan["sources"]
    }
    for source in plan["sources"]:
        name = source["name"]
        own = tensor.entry(source["masks"])
        alpha = coefficient(source["scaling"], tensor, target, deltas[name])
        for entry in (own, shared):
            alpha *= number(entry.get("scale", 1.0), tensor.name, tensor.layers)
        if alpha == 0 or own.get("keep") == "target":
            continue
        masked = Masked(deltas[name], 1e-12 if wide else 1e-5)
        masked.apply((own, shared), target - of[f"base-{name}"], deltas, read)
        value = value + alpha * masked.delta
        size = size + abs(alpha) * masked.size
        doubt |= masked.doubt
    return value, size, doubt


# ---- the plans


@st.composite
def selectors(draw: st.DrawFn, layers: int, names: tuple[str, ...] = (), deep: int = 1) -> Node:
    within = st.integers(0, layers - 1)
    low, high = sorted((draw(within), draw(within)))
    simple: dict[str, Any] = {
        "layers": st.sampled_from(
            [low, f"{low}-{high}", f"0-{high}", f"{low}-", -high - 1, f"{-high - 1}-", "even",
             f"{-high - 1}-{-low - 1}", "odd"]
        ),
        "match": st.sampled_from(GLOBS),
        "regex": st.sampled_from(REGEXES),
        "kind": st.sampled_from(sorted(KINDS)),
    }  # fmt: skip
    if names:
        simple["selection"] = st.sampled_from(names)
    found = {}
    for key in draw(st.lists(st.sampled_from(sorted(simple)), min_size=1, max_size=2, unique=True)):
        one = simple[key]
        found[key] = draw(st.one_of(one, one, st.lists(one, min_size=1, max_size=2)))
    if deep and draw(st.integers(0, 2)) == 0:
        key = draw(st.sampled_from(["all", "any", "not"]))
        inner = selectors(layers, names, deep - 1)
        nested = draw(inner) if key == "not" else draw(st.lists(inner, min_size=1, max_size=2))
        if draw(st.booleans()):
            found = {}
        found[key] = nested
    return found


@st.composite
def forms(draw: st.DrawFn, layers: int, values: st.SearchStrategy[float] = NUMBERS) -> Any:
    """A number, or one that depends on depth."""
    form: Node
    match draw(st.sampled_from(["number", "number", "points", "curve", "lines", "map"])):
        case "number":
            return draw(values)
        case "points":
            points = draw(st.lists(values, min_size=2, max_size=4))
            if draw(st.booleans()):
                return points
            form = {"points": points}
        case "curve":
            form = {"from": draw(values), "to": draw(values)}
            form["curve"] = draw(st.sampled_from(sorted(CURVES)))
        case "lines":
            form = {"shallow": draw(values), "deep": draw(values)}
        case _:
            cut = draw(st.integers(1, layers))
            spans = {f"0-{cut - 1}": draw(values)}
            form = {"layers": spans}
            if draw(st.booleans()):
                form["default"] = draw(values)
            elif cut < layers:
                spans[f"{cut}-"] = draw(values)
    if draw(st.booleans()):
        form["outside"] = {
            end: draw(values)
            for end in draw(st.sampled_from([["before"], ["after"], ["before", "after"]]))
        }
    return form


@st.composite
def strengths(draw: st.DrawFn, layers: int) -> Any:
    match draw(st.sampled_from(["form", "form", "ratio", "at most"])):
        case "form":
            return draw(forms(layers))
        case "ratio":
            return {"ratio": draw(forms(layers, RATIOS))}
        case _:
            form = {"at_most": draw(forms(layers, RATIOS))}
            if draw(st.booleans()):
                form["value"] = draw(forms(layers))
            return form


@st.composite
def plans(draw: st.DrawFn) -> Node:
    layers = draw(st.integers(1, 4))
    big = draw(st.integers(0, 9)) == 0
    shapes = shapes_of(layers, big)
    selections: Node = {}

    def matched(selector: Node) -> list[str]:
        return [name for name in shapes if selects(selector, name, layers, selections)]

    def fits(selector: Node) -> bool:
        inner = [*as_list(selector.get("all", [])), *as_list(selector.get("any", []))]
        return bool(matched(selector)) and all(
            map(fits, [*inner, *as_list(selector.get("not", []))])
        )

    for name in draw(st.sampled_from([[], ["one"], ["one", "two"]])):
        selector = draw(selectors(layers))
        if fits(selector):
            selections[name] = selector
    sources = [f"s{number}" for number in range(draw(st.integers(1, 3)))]

    def chosen() -> list[Node]:
        drawn = st.lists(selectors(layers, tuple(selections)), max_size=3)
        return [each for each in draw(drawn) if fits(each)]

    def entry(selector: Node, own: str | None) -> Node:
        names = matched(selector)
        if draw(st.integers(0, 7)) == 0:
            if own is None and draw(st.booleans()):
                return {**selector, "keep": "source_ft", "of": draw(st.sampled_from(sources))}
            return {**selector, "keep": "target"}
        others = [name for name in sources if name != own]
        actions: Node = {"scale": draw(st.one_of(FACTORS, forms(layers, FACTORS)))}
        # what is near 0.0913 is no value of the grids
        actions["above"] = draw(st.sampled_from([0.0913, 0.4119]))
        actions[draw(st.sampled_from(["top", "bottom"]))] = draw(SHARES)
        actions["orthogonal_to"] = "target_shift"
        signs = ["target_shift", *(f"agree_with {name}" for name in others if own is not None)]
        actions["sign"] = draw(st.sampled_from(signs))
        actions["file"] = draw(st.sampled_from(["every.safetensors", "some.safetensors"]))
        if all(shapes[name][:1] >= (3,) for name in names):
            actions["rows"] = draw(st.sampled_from(["0", "1-2", "2-", "0-1"]))
        taken = draw(
            st.lists(st.sampled_from(sorted(actions)), min_size=1, max_size=3, unique=True)
        )
        found = {key: actions[key] for key in taken}
        if "orthogonal_to" in found and draw(st.booleans()):
            found["beta"] = draw(st.sampled_from([0.5, 1.0, -0.25]))
        if found.get("file") == "some.safetensors":
            found["default"] = draw(st.sampled_from([0, 0.5, 1]))
        return {**selector, **found}

    def scaling() -> Any:
        if draw(st.integers(0, 2)):
            return draw(strengths(layers))
        rules = [{**each, "value": draw(strengths(layers))} for each in chosen()]
        return [*rules, {"value": draw(strengths(layers))}]

    output: Node = {"path": "./out"}
    dtype = draw(st.sampled_from([None, *DTYPES]))
    if dtype is not None:
        output["dtype"] = str(dtype).removeprefix("torch.")
    return {
        "layers": layers,
        "big": big,
        "seed": draw(st.integers(0, 1 << 30)),
        "dtypes": [draw(st.sampled_from(DTYPES)) for _ in range(1 + 2 * len(sources))],
        "wide": draw(st.integers(0, 3)) == 0,
        "plan": {
            "selections": selections,
            "sources": [
                {
                    "name": name,
                    "source_base": f"./base-{name}",
                    "source_ft": f"./ft-{name}",
                    "scaling": scaling(),
                    "masks": [entry(each, name) for each in chosen()],
                }
                for name in sources
            ],
            "masks": [entry(each, None) for each in chosen()],
            "output": output,
        },
    }


# ---- the tests


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(plans())
def test_any_whole_plan(drawn: Node) -> None:
    _check(drawn)


@pytest.mark.slow
@settings(max_examples=1500, suppress_health_check=list(HealthCheck))
@given(plans())
def test_any_whole_plan_at_length(drawn: Node) -> None:
    _check(drawn)


def _check(drawn: Node) -> None:
    plan, layers = drawn["plan"], drawn["layers"]
    shapes = shapes_of(layers, drawn["big"])
    generator = np.random.default_rng(drawn["seed"])
    names = [source["name"] for source in plan["sources"]]
    roles = ["target", *(f"{part}-{name}" for name in names for part in ("base", "ft"))]
    models = {
        role: {name: on_a_grid(shape, dtype, generator) for name, shape in shapes.items()}
        for role, dtype in zip(roles, drawn["dtypes"], strict=True)
    }
    every = {
        name: torch.from_numpy(np.asarray(generator.choice([0.0, 0.5, 1, 2, -1], size=shape)))
        for name, shape in shapes.items()
    }
    some = {name: mask.bool() for number, (name, mask) in enumerate(every.items()) if number % 2}
    files = {"every.safetensors": every, "some.safetensors": some}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for role, tensors in models.items():
            write_model(folder / role, tensors, config={**CONFIG, "num_hidden_layers": layers})
        for file, tensors in files.items():
            save_file(tensors, folder / file)
        wide = {"numerics": {"compute_dtype": "float64"}} if drawn["wide"] else {}
        path = write_plan(folder, source_base=None, source_ft=None, **plan, **wide)
        made = []
        for loop, workers in (("1", 1), ("1", 3), ("0", 2)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(native.SWITCH, loop)
                run(path, device="cpu", workers=workers, force=True, block_chunks=workers)
            made.append(weights(folder / "out"))
        found = load_file(folder / "out" / "model.safetensors")
    assert found.keys() == shapes.keys()
    for name, tensor in found.items():
        target = models["target"][name]
        dtype = plan["output"].get("dtype") or str(target.dtype).removeprefix("torch.")
        assert tensor.dtype == getattr(torch, dtype)
        assert tensor.shape == target.shape
        in_float64 = drawn["wide"] or dtype == "float32"
        value, size, doubt = expected(Seen(name, layers, plan), models, files, in_float64)
        rounded = torch.from_numpy(np.asarray(value)).to(tensor.dtype)
        # One unit of the output; where terms cancel almost entirely, of the terms.
        unit = np.abs(rounded.double().numpy()) * torch.finfo(tensor.dtype).eps
        unit = np.maximum(unit, torch.finfo(tensor.dtype).tiny * torch.finfo(tensor.dtype).eps)
        slack = unit + size * (2.0**-48 if in_float64 else 2.0**-20)
        apart = np.abs(tensor.double().numpy() - rounded.double().numpy())
        wrong = ~doubt & ~(apart <= slack)
        assert not wrong.any(), (name, np.argwhere(wrong)[:3], tensor, rounded)
    assert all(each == made[0] for each in made[1:])
