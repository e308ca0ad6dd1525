"""mergekit's merge methods: what its configurations may say of each, and what a plan calls it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Scope = Literal["all", "each", "change"]
"""For whom a parameter is: one for all models; one for each; one for each but the base."""

Base = Literal["required", "optional", "none"]
"""Whether a method merges changes of `base_model`. ``none``: the base is a model like others."""

WEIGHT = "scaling"
INT8_MASK = "int8_mask"
"""How mergekit holds its masks: it changes nothing."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """``default`` None: it must be given. ``native`` is the plan's parameter, or `WEIGHT`."""

    name: str
    scope: Scope
    default: float | bool | None
    native: str

    @property
    def is_flag(self) -> bool:
        return isinstance(self.default, bool)


@dataclass(frozen=True, slots=True)
class MergeMethod:
    """``without_effect`` are parameters that mergekit takes, and that change nothing."""

    name: str
    base: Base
    parameters: tuple[Parameter, ...]
    without_effect: tuple[str, ...] = ()


def _all(name: str, default: float | bool | None) -> Parameter:
    return Parameter(name, "all", default, name)


def _change(name: str, default: float | bool | None) -> Parameter:
    return Parameter(name, "change", default, name)


_WEIGHT = Parameter("weight", "change", None, WEIGHT)


def _arithmetic(
    name: str, normalize: bool, *more: Parameter, without: tuple[str, ...] = ()
) -> MergeMethod:
    parameters = (_WEIGHT, *more, _all("normalize", normalize), _all("lambda", 1.0))
    return MergeMethod(name, "required", parameters, without)


_DENSITY, _GAMMA, _EPSILON = (
    _change("density", 1.0),
    _change("gamma", 0.01),
    _change("epsilon", 0.15),
)
_BY_CHANCE, _BY_SIZE = _all("rescale", True), _all("rescale", False)

METHODS: Mapping[str, MergeMethod] = {
    each.name: each
    for each in (
        _arithmetic("task_arithmetic", False, without=("density", "rescale")),
        _arithmetic("ties", True, _DENSITY, _BY_SIZE),
        _arithmetic("dare_ties", False, _DENSITY, _BY_CHANCE),
        _arithmetic("dare_linear", False, _DENSITY, _BY_CHANCE),
        _arithmetic("breadcrumbs", False, _DENSITY, _GAMMA, _BY_SIZE),
        _arithmetic("breadcrumbs_ties", False, _DENSITY, _GAMMA, _BY_SIZE),
        _arithmetic("della", True, _DENSITY, _EPSILON, _BY_CHANCE),
        _arithmetic("della_linear", False, _DENSITY, _EPSILON, _BY_CHANCE),
        MergeMethod(
            "linear",
            "none",
            (Parameter("weight", "each", None, WEIGHT), _all("normalize", True)),
        ),
        MergeMethod("slerp", "required", (_all("t", None),)),
        MergeMethod(
            "nuslerp",
            "optional",
            (_WEIGHT, _all("nuslerp_flatten", True), _all("nuslerp_row_wise", False)),
        ),
        MergeMethod(
            "multislerp",
            "optional",
            (_WEIGHT, _all("normalize_weights", True), _all("eps", 1e-8)),
        ),
        MergeMethod("karcher", "none", (_all("max_iter", 10.0), _all("tol", 1e-5))),
        MergeMethod("passthrough", "none", (Parameter("scale", "each", 1.0, WEIGHT),)),
        MergeMethod("model_stock", "required", (_all("filter_wise", False),)),
        MergeMethod("arcee_fusion", "required", ()),
        MergeMethod("nearswap", "required", (_all("t", None),)),
        MergeMethod("ram", "required", (_all("epsilon", 1e-5),)),
        MergeMethod("sce", "required", (_all("select_topk", 1.0),)),
    )
}

PARAMETERS = frozenset(
    name
    for method in METHODS.values()
    for name in (*(each.name for each in method.parameters), INT8_MASK)
)
"""The parameters of any method."""
