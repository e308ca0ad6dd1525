"""How far two outputs of one configuration are from each other.

Distances are in units: the spacing of the working dtype's numbers at the largest of an element's
inputs and results, which one rounding is half of at most.
"""

from __future__ import annotations

from math import sqrt
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.compare_mergekit.cases import BASE, Case
from benchmarks.compare_mergekit.verdicts import RANDOM, RANKED, Verdict

_LEAST_SAMPLE = 4096  # elements of a tensor of which statistics are taken
_MANTISSA = {"bfloat16": 7, "float32": 23}

Tensors = dict[str, Tensor]


def judge(
    case: Case, ours: Path, theirs: Path, exact: Path | None, models: dict[str, Tensors]
) -> Verdict:
    """Compare two output folders; ``models`` are the inputs, by model and name."""
    verdict = Verdict(case.name, case.method, case.dtype)
    a, b = load(ours), load(theirs)
    true = load(exact) if exact is not None else None
    if a.keys() != b.keys():
        verdict.problem = f"other tensors: {', '.join(sorted(a.keys() ^ b.keys()))}"
        return verdict
    for name, values in a.items():
        origin = case.origin(name)
        inputs = [models[model][origin] for model in (BASE, *case.models)]
        verdict.tensors += 1
        if values.shape != b[name].shape:
            verdict.problem = f"{name} has another shape"
            return verdict
        if case.method in RANDOM:
            if values.numel() >= _LEAST_SAMPLE:
                found = _deviations(values - inputs[0], b[name] - inputs[0])
                verdict.deviations = max(verdict.deviations or 0.0, found)
            continue
        unit = _unit(case.dtype, [*inputs, b[name].double()])
        distance = (values.double() - b[name].double()).abs() / unit
        if case.method in RANKED:
            tied = _tied(case, name, inputs)
            verdict.ties += int(tied.sum())
            distance = distance[~tied]
        verdict.elements += distance.numel()
        verdict.same += int((distance == 0).sum())
        verdict.within += int((distance <= 1).sum())
        if distance.numel():
            verdict.furthest = max(verdict.furthest, float(distance.max()))
        if true is not None:
            off = [float(((one - true[name]).abs() / unit).max()) for one in (b[name], values)]
            verdict.theirs_off = max(verdict.theirs_off or 0.0, off[0])
            verdict.ours_off = max(verdict.ours_off or 0.0, off[1])
    return verdict


def load(folder: Path) -> Tensors:
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def _unit(dtype: str, values: list[Tensor]) -> Tensor:
    largest = torch.stack([each.double().abs() for each in values]).amax(dim=0)
    exponent = torch.floor(torch.log2(largest.clamp(min=1e-30)))
    return torch.exp2(exponent - _MANTISSA[dtype])


def _tied(case: Case, tensor: str, inputs: list[Tensor]) -> Tensor:
    """Elements of a magnitude of which some are kept and others are not, in any delta."""
    each = case.recipe.each or {}
    found = torch.zeros(inputs[0].shape, dtype=torch.bool)
    for place, model in enumerate(inputs[1:]):
        size = (model - inputs[0]).abs()
        ordered = size.flatten().sort(descending=True).values
        count = int(case.value(each["density"][place], tensor) * size.numel())
        ends = [count]
        if "gamma" in each:
            dropped = int(case.value(each["gamma"][place], tensor) * size.numel())
            ends = [dropped, count + dropped]
        for end in ends:
            if 0 < end < size.numel() and ordered[end - 1] == ordered[end]:
                found |= size == ordered[end]
    return found


def _deviations(ours: Tensor, theirs: Tensor) -> float:
    """The largest of how far the share of elements that changed, the mean of the changes and their
    variance are from each other, in standard deviations."""
    a, b = ours.double().flatten(), theirs.double().flatten()
    found = []
    for one, other in (
        ((a != 0).double(), (b != 0).double()),
        (a, b),
        ((a - a.mean()).square(), (b - b.mean()).square()),
    ):
        spread = sqrt(float(one.var() + other.var()) / one.numel())
        distance = abs(float(one.mean() - other.mean()))
        found.append(distance / spread if spread else 0.0 if distance == 0 else float("inf"))
    return max(found)
