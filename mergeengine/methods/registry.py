"""What a merge method is, and where all of them are found.

A method is a function in a file of its own, with `method` before it:

    @dataclass(frozen=True, slots=True)
    class Trimmed:
        density: float = number(1.0, "share of elements that are kept", least=0, most=1)

    @method("ties", paper="Yadav et al. 2023 ...", space="deltas", of_source=Trimmed)
    def ties(target, terms, parameters):
        return ...

It is given lazy tensors and gives one: for deltas the change that is added to the target, for
models their merge. Everything else that is said of methods (what plans may write, how it is listed
and explained, the contracts it is held to) comes from what stands here. Files in this package are
found by themselves; other packages name theirs as entry points of the group `GROUP`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any, Generic, Literal, TypeVar

import mergeengine.methods
from mergeengine.lazy.tensor import LazyTensor
from mergeengine.values.decisions import number_text
from mergeengine.values.parameters import Form, Number

GROUP = "mergeengine.methods"

Coefficient = float | LazyTensor
"""A number of the plan, or one that the norms of the tensors decide."""

Space = Literal["deltas", "both"]
"""``deltas``: differences that are merged into a target. ``both``: those, or models themselves."""

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Nothing:
    """The parameters of a method that has none."""


@dataclass(frozen=True, slots=True)
class Term(Generic[P]):
    """One source's part in one tensor.

    ``value`` is its delta, or its model's tensor; ``scaling`` its weight; ``own`` the method's
    parameters of this source; ``shift`` target - source_base, zero for a model; ``key`` (64 bits)
    that of its random numbers, which no other source or tensor has.
    """

    name: str
    value: LazyTensor
    scaling: Coefficient
    own: P
    shift: LazyTensor
    key: int


@dataclass(frozen=True, slots=True)
class Option:
    """A parameter of a method, as a plan writes it.

    A number may take every form of the plan language; flags, integers and choices are the same for
    every tensor. ``per_source``: each source may have its own.
    """

    name: str
    kind: Literal["number", "integer", "flag", "choice"]
    default: Form | int | bool | str
    meaning: str
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    per_source: bool = False

    @property
    def expected(self) -> str:
        """``a number from 0 to 1``"""
        if self.kind == "flag":
            return "true or false"
        if self.kind == "choice":
            return f"one of {', '.join(self.choices)}"
        what = "a whole number" if self.kind == "integer" else "a number"
        low = "" if self.least is None else number_text(self.least)
        high = "" if self.most is None else number_text(self.most)
        if low and high:
            return f"{what} from {low} to {high}"
        return f"{what}{f' of at least {low}' if low else f' of at most {high}' if high else ''}"

    @property
    def default_text(self) -> str:
        if isinstance(self.default, bool):
            return "true" if self.default else "false"
        return str(self.default) if isinstance(self.default, int | str) else self.default.text

    def allows(self, value: float) -> bool:
        """Whether a number is within the bounds."""
        return (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )


Merge = Callable[[LazyTensor, Sequence[Term[Any]], Any], LazyTensor]


@dataclass(frozen=True, slots=True)
class Method:
    """A registered method.

    ``weighted``: the sources' ``scaling`` is their weight; otherwise it may not be given.
    ``alike``: the order of the sources does not matter. ``sources``: how few and how many it takes.
    ``own`` and ``parameters`` are the types of a source's parameters and of the method's, and
    ``options`` what plans may write of both, the sources' own first.
    """

    name: str
    merge: Merge
    paper: str
    space: Space
    own: type
    parameters: type
    weighted: bool
    alike: bool
    sources: tuple[int, int | None]
    options: tuple[Option, ...]

    @property
    def title(self) -> str:
        """One sentence: the first of the function's docstring."""
        return " ".join((self.merge.__doc__ or "").strip().split("\n\n")[0].split())

    @property
    def description(self) -> str:
        """What follows it."""
        lines = (self.merge.__doc__ or "").strip().splitlines()
        return "\n".join(line.strip() for line in lines).partition("\n\n")[2].strip()

    @property
    def sources_text(self) -> str:
        least, most = self.sources
        if least == most:
            return "exactly one source" if least == 1 else f"exactly {least} sources"
        return "one source or more" if least == 1 else f"{least} sources or more"


def number(
    default: float | Form, meaning: str, *, least: float | None = None, most: float | None = None
) -> Any:
    """A parameter that may differ from tensor to tensor; bounds are included."""
    form = Number(float(default)) if isinstance(default, int | float) else default
    return _declared("number", form, meaning, least=least, most=most)


def integer(default: int, meaning: str, *, least: int | None = None) -> Any:
    """A whole number, the same for every tensor."""
    return _declared("integer", default, meaning, least=least)


def flag(default: bool, meaning: str) -> Any:
    """True or false, the same for every tensor."""
    return _declared("flag", default, meaning)


def choice(default: str, meaning: str, *choices: str) -> Any:
    """One of several words, the same for every tensor."""
    return _declared("choice", default, meaning, choices=choices)


def _declared(kind: str, default: Any, meaning: str, **others: Any) -> Any:
    plain = default.value if isinstance(default, Number) else default
    option = {"kind": kind, "default": default, "meaning": meaning, **others}
    return field(default=plain, metadata={"option": option})


def _options(declared: type, per_source: bool) -> tuple[Option, ...]:
    return tuple(
        Option(each.name.rstrip("_"), per_source=per_source, **each.metadata["option"])
        for each in fields(declared)
        if each.default is not MISSING
    )


def made(declared: type[P], values: Mapping[str, Any]) -> P:
    """The parameters of ``declared`` with these values."""
    names = {each.name.rstrip("_"): each.name for each in fields(declared)}  # type: ignore[arg-type]
    return declared(**{names[name]: value for name, value in values.items()})


_methods: dict[str, Method] = {}


def method(
    name: str,
    *,
    paper: str,
    space: Space = "deltas",
    of_source: type = Nothing,
    parameters: type = Nothing,
    weighted: bool = True,
    alike: bool = True,
    sources: tuple[int, int | None] = (1, None),
) -> Callable[[Merge], Merge]:
    """Register a function as the method ``name``; see `Method` for the rest."""

    def register(merge: Merge) -> Merge:
        known = _methods.get(name)
        if known is not None and known.merge.__module__ != merge.__module__:
            raise ValueError(
                f"two methods are named {name}: in {known.merge.__module__} and {merge.__module__}"
            )
        options = (*_options(of_source, True), *_options(parameters, False))
        _methods[name] = Method(
            name, merge, paper, space, of_source, parameters, weighted, alike, sources, options
        )
        return merge

    return register


@cache
def methods() -> Mapping[str, Method]:
    """Every method by name, those of other packages too; transfer, the default, first."""
    for module in iter_modules(mergeengine.methods.__path__):
        import_module(f"{mergeengine.methods.__name__}.{module.name}")
    for point in entry_points(group=GROUP):
        point.load()
    return dict(sorted(_methods.items(), key=lambda each: (each[0] != "transfer", each[0])))
