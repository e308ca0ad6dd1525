"""A configuration as it is written: its keys, its models, and where each stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mergeengine.mergekit.methods import METHODS, PARAMETERS, MergeMethod
from mergeengine.mergekit.models import Model, Models, check_keys
from mergeengine.mergekit.settings import Layers
from mergeengine.plan.document import Node
from mergeengine.plan.problems import Problems
from mergeengine.values.excerpts import excerpt
from mergeengine.values.nearest import did_you_mean, nearest
from mergeengine.values.positions import Position

_WHOLE = ("models", "slices", "modules")
_KEYS = (
    "merge_method", "base_model", *_WHOLE, "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template", "name",
)  # fmt: skip
_DTYPES = ("bfloat16", "float16", "float32", "float64")
# Of mergekit's command line, where some write them into the configuration, and of its past.
_WITHOUT_EFFECT = (
    "allow_crimes", "async_write", "clone_tensors", "copy_tokenizer", "cuda", "device",
    "embed_slerp", "gpu_rich", "int8_mask", "lazy_unpickle", "lora_merge_cache", "lora_merge_dtype",
    "low_cpu_memory", "multi_gpu", "num_threads", "out_shard_size", "quiet", "random_seed",
    "read_to_gpu", "safe_serialization", "transformers_cache", "trust_remote_code", "verbosity",
    "write_model_card", "write_threads",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Input:
    """A model of a slice, and which of its layers (None: all)."""

    model: Model
    layers: Layers | None
    parameters: Node | None
    position: Position


@dataclass(frozen=True, slots=True)
class Slice:
    """What is merged into layers of the output; of `models` there is one, of all layers."""

    inputs: tuple[Input, ...]
    base: Model | None
    parameters: Node | None
    position: Position


@dataclass(frozen=True, slots=True)
class Config:
    """``parameters`` are those for everything, the first of them before the others."""

    method: MergeMethod
    method_position: Position
    name: Node | None
    base: Model | None
    slices: tuple[Slice, ...]
    parameters: tuple[Node, ...]
    dtype: Node | None
    out_dtype: Node | None
    tokenizer_source: Node | None
    tokenizer: Node | None
    chat_template: Node | None
    position: Position

    @property
    def stacked(self) -> bool:
        """Whether single layers are named."""
        return any(each.layers is not None for part in self.slices for each in part.inputs)

    @property
    def models(self) -> Iterator[Model]:
        """Each model once: the base, then the others as written."""
        named = [each.model for part in self.slices for each in part.inputs]
        yield from dict.fromkeys([*([] if self.base is None else [self.base]), *named])


@dataclass(slots=True)
class Told:
    """What is said of a configuration beside its problems."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_config(root: Node, models: Models, problems: Problems, told: Told) -> Config | None:
    """The configuration that a tree is; None, and problems, where its method, models or names of
    parameters are wrong."""
    return _Reader(models, problems, told).config(root)


@dataclass(frozen=True, slots=True)
class _Reader:
    models: Models
    problems: Problems
    told: Told

    def config(self, root: Node) -> Config | None:
        for key, at in list(root.keys.items()):
            if key in _WITHOUT_EFFECT:
                self.told.notes.append(f"{at}: `{key}` has no effect on the result")
                root.keys.pop(key)
        check_keys(root, _KEYS, self.problems)
        known = len(self.problems.found)
        method = self._method(root)
        inside, parameters = self._inside(root)
        slices = tuple(self._slices(inside))
        for each in parameters:
            self._check_parameters(each)
        base = self._model(root, "base_model")
        if method is None or len(self.problems.found) > known:
            return None
        config = Config(
            method=method,
            method_position=root.key_position(("merge_method",)),
            name=self._text(root, "name"),
            base=base,
            slices=slices,
            parameters=tuple(parameters),
            dtype=self._dtype(root, "dtype"),
            out_dtype=self._dtype(root, "out_dtype"),
            tokenizer_source=_there(root, "tokenizer_source"),
            tokenizer=_there(root, "tokenizer"),
            chat_template=self._text(root, "chat_template"),
            position=root.position,
        )
        if config.tokenizer_source is not None and config.tokenizer is not None:
            message = "`tokenizer_source` and `tokenizer` exclude each other"
            self.problems.add(root.keys["tokenizer_source"], message)
        return config

    def _method(self, root: Node) -> MergeMethod | None:
        node = root.get("merge_method")
        if node is None:
            self.problems.add(root.position, "`merge_method` is missing")
            return None
        found = METHODS.get(node.written)
        if found is None:
            hint = did_you_mean(node.written, METHODS) or f"; there are {', '.join(METHODS)}"
            message = f"the merge method `{excerpt(node.written)}` is not supported{hint}"
            self.problems.add(node.position, message)
        return found

    def _inside(self, root: Node) -> tuple[Node, list[Node]]:
        """Where `models` or `slices` stand, and the parameters around them."""
        around = [each for each in (_there(root, "parameters"),) if each is not None]
        there = [key for key in _WHOLE if _there(root, key) is not None]
        if len(there) != 1:
            found = " and ".join(f"`{key}`" for key in there) or "none"
            at = root.keys[there[1]] if there else root.position
            self.problems.add(at, f"expected one of `models`, `slices`, `modules`, found {found}")
        if there != ["modules"]:
            return root, around
        modules = root.at(("modules",))
        if not isinstance(modules.value, dict) or len(modules.value) != 1:
            message = "`modules`: only a single one is supported: the layers of a language model"
            self.problems.add(modules.position, message)
            return Node(modules.position, {}), around
        (module,) = modules.value.values()
        check_keys(module, ("models", "slices", "parameters"), self.problems)
        own = _there(module, "parameters")
        return module, [*([] if own is None else [own]), *around]

    def _slices(self, inside: Node) -> Iterator[Slice]:
        models, slices = _there(inside, "models"), _there(inside, "slices")
        if models is not None:
            inputs = tuple(self._inputs(models, layers=False))
            if inputs:
                yield Slice(inputs, None, None, models.position)
        elif slices is None:
            if not self.problems.found:
                self.problems.add(inside.position, "expected `models` or `slices`, found none")
        else:
            for each in self._listed(slices, "slices"):
                known = ("sources", "base_model", "parameters", "residual_weight")
                check_keys(each, known, self.problems)
                if each.get("residual_weight") is not None:
                    at = each.keys["residual_weight"]
                    self.told.notes.append(f"{at}: `residual_weight` has no effect in mergekit")
                sources = self._needed(each, "sources")
                if sources is None:
                    continue
                own = _there(each, "parameters")
                self._check_parameters(own)
                inputs = tuple(self._inputs(sources, layers=True))
                yield Slice(inputs, self._model(each, "base_model"), own, each.position)

    def _inputs(self, node: Node, layers: bool) -> Iterator[Input]:
        seen: dict[Model, Position] = {}
        what = "sources" if layers else "models"
        for each in self._listed(node, what):
            known = ("model", *(["layer_range"] if layers else []), "parameters")
            check_keys(each, known, self.problems)
            own = _there(each, "parameters")
            self._check_parameters(own)
            model = self._model(each, "model", needed=True)
            span = self._layers(each) if layers else None
            if model is None or (layers and span is None):
                continue
            if model in seen:
                message = f"`{model.written}` stands twice, first in line {seen[model].line}"
                self.problems.add(model.position, message)
            seen.setdefault(model, model.position)
            yield Input(model, span, own, each.position)

    def _layers(self, node: Node) -> Layers | None:
        """The inclusive layers of `layer_range`, which is half-open."""
        span = node.get("layer_range")
        if span is None:
            self.problems.add(node.position, "`layer_range` is missing: [first, last + 1]")
            return None
        match span.plain:
            case [int(first), int(end)] if 0 <= first < end:
                return first, end - 1
            case [int(first), int(end)]:
                message = f"`layer_range`: there are no layers from {first} to before {end}"
            case _:
                message = f"`layer_range`: expected [first, last + 1], found {span.described}"
        self.problems.add(span.position, message)
        return None

    def _listed(self, node: Node, what: str) -> list[Node]:
        """The mappings of a list; problems for what is not."""
        entries = node.value if isinstance(node.value, list) else []
        if not entries:
            self.problems.add(node.position, f"`{what}`: expected a list, found {node.described}")
        for each in entries:
            if not isinstance(each.value, dict):
                message = f"`{what}`: expected a mapping of keys to values, found {each.described}"
                self.problems.add(each.position, message)
        return [each for each in entries if isinstance(each.value, dict)]

    def _model(self, node: Node, key: str, needed: bool = False) -> Model | None:
        found = self._needed(node, key) if needed else _there(node, key)
        return None if found is None else self.models.read(found)

    def _needed(self, node: Node, key: str) -> Node | None:
        """The child of that key; a problem where there is none, unless it is misspelt."""
        found = _there(node, key)
        if found is None and not nearest(key, set(node.keys) - {key}):
            self.problems.add(node.position, f"`{key}` is missing")
        return found

    def _check_parameters(self, node: Node | None) -> None:
        """Names alone: what a parameter may be its method says."""
        if node is None:
            return
        if not isinstance(node.value, dict):
            message = f"`parameters`: expected a mapping of keys to values, found {node.described}"
            self.problems.add(node.position, message)
            return
        for key, at in node.keys.items():
            if key not in PARAMETERS:
                hint = did_you_mean(key, sorted(PARAMETERS))
                self.problems.add(at, f"no merge method has a parameter `{excerpt(key)}`{hint}")

    def _dtype(self, root: Node, key: str) -> Node | None:
        node = self._text(root, key)
        if node is None:
            return None
        name = node.written.removeprefix("torch.")
        if name not in _DTYPES:
            message = f"`{key}`: expected one of {', '.join(_DTYPES)}, found {node.described}"
            self.problems.add(node.position, message)
        return Node(node.position, name, name)

    def _text(self, root: Node, key: str) -> Node | None:
        node = _there(root, key)
        if node is None or isinstance(node.value, str):
            return node
        if isinstance(node.value, list | dict):
            message = f"`{key}`: expected a text, found {node.described}"
            self.problems.add(node.position, message)
            return None
        return Node(node.position, node.written, node.written)


def _there(node: Node, key: str) -> Node | None:
    """The child of that key, where it has a value."""
    found = node.get(key)
    return None if found is None or found.value is None else found
