"""The parameters of a configuration's method: what a plan says of the whole and of each source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mergeengine.mergekit import settings
from mergeengine.mergekit.arrangement import Arrangement, Cell, Column, moved
from mergeengine.mergekit.config import Config, Slice, Told
from mergeengine.mergekit.methods import INT8_MASK, WEIGHT, Parameter
from mergeengine.mergekit.nodes import scalar
from mergeengine.mergekit.settings import Setting
from mergeengine.methods.registry import methods
from mergeengine.plan.document import Node
from mergeengine.plan.problems import Problems
from mergeengine.values.parameters import Number


@dataclass(frozen=True, slots=True)
class Given:
    """What a plan says: ``weights`` of the sources (None: 1), ``shared`` of all, and ``own`` of
    each source. Defaults of plans are left out."""

    weights: tuple[Node | None, ...]
    shared: Mapping[str, Node]
    own: tuple[Mapping[str, Node], ...]


def given(config: Config, arranged: Arrangement, problems: Problems, told: Told) -> Given:
    """What the places of a configuration together say of its method's parameters."""
    return _Parameters(config, arranged, problems, told).given()


@dataclass(frozen=True, slots=True)
class _Parameters:
    config: Config
    arranged: Arrangement
    problems: Problems
    told: Told

    def given(self) -> Given:
        self._tell_of_what_has_no_effect()
        count = len(self.arranged.sources)
        weights: list[Node | None] = [None] * count
        shared: dict[str, Node] = {}
        own: list[dict[str, Node]] = [{} for _ in range(count)]
        flags: dict[str, Node | bool] = {}
        for parameter in self.config.method.parameters:
            if parameter.is_flag:
                flags[parameter.name] = self._flag(parameter)
            elif parameter.scope == "all":
                each = [self._setting(parameter, part, None) for part in self.config.slices]
                self._put(shared, parameter, settings.form(each, self.arranged.layers))
            else:
                nodes = [self._of_source(parameter, each) for each in self.arranged.sources]
                if parameter.native == WEIGHT:
                    weights = [None if node.value == 1 else node for node in nodes]
                elif all(node.plain == nodes[0].plain for node in nodes):
                    self._put(shared, parameter, nodes[0])
                else:
                    for of, node in zip(own, nodes, strict=True):
                        self._put(of, parameter, node)
        shared |= self._flags(flags)
        return Given(tuple(weights), shared, tuple(own))

    def _put(self, into: dict[str, Node], parameter: Parameter, node: Node) -> None:
        if node.value != _default(self.config.method.name, parameter.native):
            into[parameter.native] = node

    def _of_source(self, parameter: Parameter, column: Column) -> Node:
        found = [
            settings.constant(0.0, cell.input.position)
            if cell.fills and parameter.native == WEIGHT
            else self._setting(parameter, cell.slice, cell)
            for cell in column
        ]
        for each in found:
            layer = settings.numbered(each)
            if layer is not None and moved(column, self.arranged.layers):
                self.problems.add(
                    each[0].position,
                    f"the filter `{layer}` has a layer's number, and layers are renumbered here: "
                    "give the slice or source its own parameters instead",
                )
        return settings.form(found, self.arranged.layers)

    def _setting(self, parameter: Parameter, part: Slice, cell: Cell | None) -> Setting:
        """What is said for a slice, or for an input of it; complete."""
        places = [None if cell is None else cell.input.parameters, part.parameters]
        nodes = [
            each.get(parameter.name)
            for each in (*places, *self.config.parameters)
            if each is not None
        ]
        found = settings.resolve(nodes, self.problems)
        if found and found[-1].part is None:
            return found
        at = found[-1].position if found else (cell.input if cell else self.config).position
        if parameter.default is None:
            if found:
                message = (
                    f"`{parameter.name}` has no value for tensors that no filter matches: "
                    "add {value: ...} at the end"
                )
            elif cell is None:
                message = f"`{parameter.name}` is missing in `parameters`"
                if any(_has(each.parameters, parameter.name) for each in part.inputs):
                    message += ": it is one for all models, and has no effect in those of one"
            else:
                of = cell.input.model.written
                message = f"`{parameter.name}` is missing for the model `{of}`"
                if cell.input.model == self.config.base:
                    message += f", which `{self.config.method.name}` merges as it does the others"
            self.problems.add(at, message)
        default = 0.0 if parameter.default is None else float(parameter.default)
        if not found:
            at = self.config.method_position
        return (*found, *settings.constant(default, at))

    def _flag(self, parameter: Parameter) -> Node | bool:
        """The value, with its place where the configuration has it; one for all slices."""
        default = bool(parameter.default)
        found = [
            settings.flag(
                [
                    each.get(parameter.name)
                    for each in (part.parameters, *self.config.parameters)
                    if each is not None
                ],
                default,
                self.problems,
            )
            for part in self.config.slices
        ]
        if len({_is(each) for each in found}) > 1:
            at = next(each.position for each in found if isinstance(each, Node))
            self.problems.add(at, f"`{parameter.name}` must be the same in all slices")
        return next((each for each in found if isinstance(each, Node)), found[0])

    def _flags(self, flags: Mapping[str, Node | bool]) -> Iterator[tuple[str, Node]]:
        name, at = self.config.method.name, self.config.method_position
        options = {option.name for option in methods()[name].options}
        for key, value in flags.items():
            place = value.position if isinstance(value, Node) else at
            if key == "rescale":
                if key in options:
                    yield key, scalar("norm" if _is(value) else "none", place)
                elif _is(value):
                    message = f"`rescale` is not supported with `{name}`, only with random methods"
                    self.problems.add(place, message)
            elif key == "nuslerp_flatten":
                if not _is(value):
                    rows = not _is(flags["nuslerp_row_wise"])
                    yield "along", scalar("rows" if rows else "columns", place)
            elif key != "nuslerp_row_wise" and _is(value) != _default(name, key):
                yield key, scalar(_is(value), place)

    # --- what changes nothing ----------------------------------------------------------------

    def _tell_of_what_has_no_effect(self) -> None:
        bases = [] if self.arranged.base is None else list(self.arranged.base)
        if self.config.method.name == "slerp":
            bases = list(self.arranged.sources[0])
        base = {id(cell.input) for cell in bases}
        for place in self.config.parameters:
            self._tell(place, of_input=False, of_base=False)
        for part in self.config.slices:
            self._tell(part.parameters, of_input=False, of_base=False)
            for each in part.inputs:
                self._tell(each.parameters, of_input=True, of_base=id(each) in base)

    def _tell(self, place: Node | None, *, of_input: bool, of_base: bool) -> None:
        method = self.config.method
        known = {each.name: each for each in method.parameters}
        for key, at in () if place is None else place.keys.items():
            if key in (*method.without_effect, INT8_MASK):
                self.told.notes.append(f"{at}: `{key}` has no effect on the result")
            elif key not in known:
                self.told.warnings.append(f"{at}: `{key}` has no effect with `{method.name}`")
            elif of_input and known[key].scope == "all":
                self.told.warnings.append(
                    f"{at}: `{key}` is one for all models and has no effect here, as in mergekit; "
                    "write it under `parameters`"
                )
            elif of_base and known[key].scope == "change":
                self.told.warnings.append(f"{at}: `{key}` of the base model has no effect")


def _has(place: Node | None, name: str) -> bool:
    return place is not None and place.get(name) is not None


def _is(value: Node | bool) -> bool:
    return bool(value.value) if isinstance(value, Node) else value


def _default(method: str, name: str) -> object:
    """That of plans."""
    found = next(option.default for option in methods()[method].options if option.name == name)
    return found.value if isinstance(found, Number) else found


def chooses_by_name(nodes: Sequence[Node]) -> bool:
    """Whether rules choose tensors by their names, of which a model may have none."""
    return any(path[-1:] in (("match",), ("regex",)) for node in nodes for path, _ in node.walk())
