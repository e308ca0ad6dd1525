"""From checked keys to the frozen plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

from mergeengine.plan.document import Node
from mergeengine.plan.document import Path as KeyPath
from mergeengine.plan.forms import one_or_many
from mergeengine.plan.mask_actions import actions_of, keep_of
from mergeengine.plan.parameters import form, options, scaling
from mergeengine.plan.plan import (
    DEFAULT_SHARD_SIZE,
    DtypeRule,
    DtypeRules,
    Numerics,
    OutputOptions,
    Plan,
    Role,
    Source,
    Substituted,
)
from mergeengine.plan.renaming import rename_of
from mergeengine.plan.schema import MaskKeys, PlanKeys, RenameKeys, SourceKeys
from mergeengine.plan.selecting import Selections, layers_of
from mergeengine.plan.vocabularies import ROLES, vocabulary_of
from mergeengine.values.masks import WHOLE, MaskEntry, Masks
from mergeengine.values.references import ModelReference, Slab, local_path, parse_reference
from mergeengine.values.renaming import Rename


def build(
    keys: PlanKeys,
    root: Node,
    text: str,
    file: Path,
    substituted: Substituted,
    warnings: tuple[str, ...],
) -> Plan:
    """The plan of `keys`; `root` tells where each value is written."""
    plan = _Builder(root, file.parent, Selections(keys.selections)).plan(keys, text, file)
    return replace(plan, substituted=substituted, warnings=warnings)


class _Builder:
    def __init__(self, root: Node, folder: Path, selections: Selections) -> None:
        self.root = root
        self.folder = folder
        self.selections = selections

    def plan(self, keys: PlanKeys, text: str, file: Path) -> Plan:
        target: KeyPath = ("target",) if keys.base is None else ("base",)
        own_target = keys.target is not None or keys.base is not None
        if not own_target:
            target = ("sources", 0, "model")
        method = self.root.get("method")
        return Plan(
            version=keys.version,
            name=keys.name or file.stem,
            file=file,
            target=self._model(target),
            sources=self._sources(keys, target),
            masks=self._masks(keys.masks, ("masks",)),
            output=self._output(keys),
            numerics=Numerics(keys.numerics.compute_dtype, keys.numerics.compatibility),
            on_missing=keys.on_missing,
            on_extra=keys.on_extra,
            on_mismatch=keys.on_mismatch,
            on_nonfinite=keys.on_nonfinite,
            on_unmatched=keys.on_unmatched,
            document=self.root.plain,
            text=text,
            seed=keys.seed,
            vocabulary=vocabulary_of(keys.vocabulary, self.root),
            compatibility=keys.compatibility,
            method=keys.method,
            method_position=None if method is None else method.position,
            parameters=options(keys.parameters, self.root, ("parameters",), self.selections),
            own_target=own_target,
        )

    def _sources(self, keys: PlanKeys, target: KeyPath) -> tuple[Source, ...]:
        shared: KeyPath = ("source_base",) if keys.base is None else ("base",)
        if keys.sources is None:
            source_base = self._model(shared)
            source_ft = self._model(("source_ft",), source_base)
            applied = scaling(keys.scaling, self.root, ("scaling",), self.selections)
            return (
                Source(
                    name="source1",
                    source_base=source_base,
                    source_ft=source_ft,
                    scaling=applied,
                    renames=self._renames(keys.rename, ("rename",)),
                    layer_map=keys.layer_map,
                    position=source_ft.position,
                ),
            )
        return tuple(
            self._source(keys, source, index, shared, target)
            for index, source in enumerate(keys.sources)
        )

    def _source(
        self, plan: PlanKeys, keys: SourceKeys, index: int, shared: KeyPath, target: KeyPath
    ) -> Source:
        here: KeyPath = ("sources", index)
        own_base = shared if keys.source_base is None else (*here, "source_base")
        ft: KeyPath = (*here, "source_ft")
        if keys.model is not None:
            own_base, ft = target, (*here, "model")
        source_base = self._model(own_base)
        return Source(
            name=keys.name or f"source{index + 1}",
            source_base=source_base,
            source_ft=self._model(ft, source_base),
            scaling=scaling(keys.scaling, self.root, (*here, "scaling"), self.selections),
            masks=self._masks(keys.masks, (*here, "masks")),
            renames=(
                self._renames(plan.rename, ("rename",))
                if keys.rename is None
                else self._renames(keys.rename, (*here, "rename"))
            ),
            layer_map=plan.layer_map if keys.layer_map is None else keys.layer_map,
            position=self.root.at(here).position,
            whole=keys.model is not None,
            parameters=options(keys.parameters, self.root, (*here, "parameters"), self.selections),
        )

    def _reference(self, path: KeyPath) -> ModelReference:
        node = self.root.at(path)
        assert isinstance(node.value, str)
        return parse_reference(node.value, self.folder, node.position)

    def _model(self, path: KeyPath, source_base: ModelReference | None = None) -> ModelReference:
        """A model, an adapter of `source_base` where it names no other base, or a stack."""
        written = self.root.at(path)
        stack = written.get("stack")
        if stack is not None:
            assert isinstance(stack.value, list)
            slabs = (self._slab((*path, "stack", index)) for index in range(len(stack.value)))
            return ModelReference.of_stack(slabs, written.position)
        if written.get("adapter") is None:
            return self._reference(path)
        adapter = self._reference((*path, "adapter"))
        adapts = source_base if written.get("base") is None else self._reference((*path, "base"))
        return replace(adapter, adapts=adapts)

    def _slab(self, path: KeyPath) -> Slab:
        layers = self.root.at(path).get("layers")
        spans = () if layers is None else tuple(map(layers_of, one_or_many(layers.plain)))
        return Slab(self._model((*path, "model")), spans)

    def _masks(self, entries: list[MaskKeys], path: KeyPath) -> Masks:
        return Masks(
            tuple(
                MaskEntry(
                    self.selections.selector(entry),
                    WHOLE
                    if entry.scale is None
                    else form(entry.scale, self.root, (*path, index, "scale"), self.selections),
                    self.root.at((*path, index)).position,
                    keep_of(entry),
                    actions_of(entry, self.folder),
                )
                for index, entry in enumerate(entries)
            )
        )

    def _renames(self, rules: list[RenameKeys], path: KeyPath) -> tuple[Rename, ...]:
        return tuple(
            rename_of(rule, self.root.at((*path, index)).position)
            for index, rule in enumerate(rules)
        )

    def _output(self, plan: PlanKeys) -> OutputOptions:
        keys = plan.output
        donors: dict[str, str] = {}  # of what the plan leaves to other keys
        if isinstance(plan.vocabulary, str) and plan.vocabulary in ROLES:
            donors["tokenizer"] = plan.vocabulary
        if plan.compatibility is not None:
            donors["config"] = "source_ft"
        rules = (
            DtypeRule(
                self.selections.selector(rule),
                rule.dtype,
                self.root.at(("output", "dtype", index)).position,
            )
            for index, rule in enumerate(keys.dtype or [])
        )
        return OutputOptions(
            path=None if keys.path is None else local_path(keys.path, self.folder),
            dtype=DtypeRules(tuple(rules)),
            shard_size=keys.shard_size or DEFAULT_SHARD_SIZE,
            tokenizer=self._files_of("tokenizer", donors.get("tokenizer", keys.tokenizer)),
            config=self._files_of("config", donors.get("config", keys.config)),
            generation_config=self._files_of("generation_config", keys.generation_config),
            quantization=keys.quantization,
            chat_template=keys.chat_template,
        )

    def _files_of(self, key: str, value: str) -> Role | ModelReference:
        if value in ("target", "source_ft"):
            return cast(Role, value)
        return self._reference(("output", key))
