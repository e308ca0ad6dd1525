"""The frozen result of reading a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mergeengine.lazy.dtypes import DType
from mergeengine.values.anatomy import TensorFacts
from mergeengine.values.choices import Choice
from mergeengine.values.masks import Masks
from mergeengine.values.parameters import Parameter
from mergeengine.values.positions import Position
from mergeengine.values.references import ModelReference, without_secrets
from mergeengine.values.renaming import LayerMap, Rename
from mergeengine.values.scaling import Scaling
from mergeengine.values.selectors import Selector, first_match, unused_rules
from mergeengine.values.vocabulary import Vocabulary

OnMissing = Literal["error", "keep_target"]
OnExtra = Literal["error", "ignore", "copy"]
OnMismatch = Literal["error", "keep_target"]
Compatibility = Literal["finetuning-transfer"]
OnNonfinite = Literal["error", "keep_target", "allow"]
OnUnmatched = Literal["error", "warn"]
ComputeDtype = Literal["auto", "float32", "float64", "bfloat16", "float16"]
Role = Literal["target", "source_ft"]
Quantization = Literal["none", "keep"]
Rounding = Literal["mergekit"]

DEFAULT_METHOD = "transfer"
DEFAULT_SHARD_SIZE = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Source:
    """One delta, ``source_ft - source_base``, and how it is applied.

    `renames` and `layer_map` say which of its tensors are which of the target's. ``whole``: the
    plan names a model; then `source_ft` is that and `source_base` the target. `parameters` are the
    method's, for this source.
    """

    name: str
    source_base: ModelReference
    source_ft: ModelReference
    scaling: Scaling = field(default_factory=Scaling)
    masks: Masks = field(default_factory=Masks)
    renames: tuple[Rename, ...] = ()
    layer_map: LayerMap | None = None
    position: Position | None = field(default=None, compare=False)
    whole: bool = False
    parameters: Mapping[str, Parameter | Choice] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DtypeRule:
    """The element type in which the tensors of one selector are written."""

    selector: Selector
    dtype: DType
    position: Position | None = field(default=None, compare=False)

    @property
    def text(self) -> str:
        return f"{self.selector.text}, dtype: {self.dtype}"


@dataclass(frozen=True, slots=True)
class DtypeRules:
    """``output.dtype``: the first rule that matches holds; without one, the target's dtype."""

    rules: tuple[DtypeRule, ...] = ()

    def at(self, tensor: TensorFacts) -> DType | None:
        rule = self.rule_at(tensor)
        return None if rule is None else rule.dtype

    def rule_at(self, tensor: TensorFacts) -> DtypeRule | None:
        return first_match(self.rules, tensor)

    def unused(self, tensors: Iterable[TensorFacts]) -> list[DtypeRule]:
        return unused_rules(self.rules, tensors)


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Where the output goes and what it is made of besides the merged numbers.

    `tokenizer`, `config` and `generation_config` name the model that these files come from:
    one of the plan's roles (with several sources ``source_ft`` is the first) or another model.
    `quantization` says what becomes of weights that the target has in 8 bits: written as what they
    mean, or in 8 bits again. `chat_template` is a template or a word for one; None: the
    tokenizer's.
    """

    path: Path | None = None
    dtype: DtypeRules = field(default_factory=DtypeRules)
    shard_size: int = DEFAULT_SHARD_SIZE
    tokenizer: Role | ModelReference = "source_ft"
    config: Role | ModelReference = "target"
    generation_config: Role | ModelReference = "source_ft"
    quantization: Quantization = "none"
    chat_template: str | None = None


@dataclass(frozen=True, slots=True)
class Numerics:
    """The arithmetic's dtype; ``auto``: float32, and float64 for float32 outputs.

    With `compatibility` it is the dtype to which inputs, and results on the way, are rounded as
    another tool does; ``auto``: each tensor's own. 16 bits are possible only so.
    """

    compute_dtype: ComputeDtype = "auto"
    compatibility: Rounding | None = None


@dataclass(frozen=True, slots=True)
class Substituted:
    """What a plan took from elsewhere: the variables that it used and those of the environment,
    with their values, and the files that it includes, with a digest of what each says."""

    variables: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    includes: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The same as plain data; nothing where nothing was taken."""
        parts = {
            "vars": self.variables,
            "environment": self.environment,
            "includes": self.includes,
        }
        return {name: dict(part) for name, part in parts.items() if part}


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan that has been read and checked; nothing in it has been looked up yet.

    `document` is the plan as plain data, exactly as written, with includes, ``--set`` and
    variables applied; `text` is the file's text without them. `masks` hold for every source, on
    top of the source's own. `seed` is that of random masks and methods. `compatibility` names other
    code whose way with vocabularies is taken in the place of `vocabulary`. `parameters` are those
    of `method`, and where it has them for each source, of the sources that say nothing else.
    ``own_target``: the plan names a target; otherwise it is the first source's model.
    """

    version: int
    name: str
    file: Path
    target: ModelReference
    sources: tuple[Source, ...]
    masks: Masks
    output: OutputOptions
    numerics: Numerics
    on_missing: OnMissing
    on_extra: OnExtra
    on_mismatch: OnMismatch
    on_nonfinite: OnNonfinite
    document: dict[str, Any]
    text: str
    substituted: Substituted = field(default_factory=Substituted)
    warnings: tuple[str, ...] = ()
    seed: int = 0
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    compatibility: Compatibility | None = None
    method: str = DEFAULT_METHOD
    method_position: Position | None = field(default=None, compare=False)
    parameters: Mapping[str, Parameter | Choice] = field(default_factory=dict)
    own_target: bool = True
    on_unmatched: OnUnmatched = "error"
    notes: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[object, ...]:
        """What is opened for the plan, and as what: plans of equal ``models`` can share them."""
        sources = [(each.name, each.source_base, each.source_ft) for each in self.sources]
        output = self.output
        donors = output.tokenizer, output.config, output.generation_config
        return (self.target, *sources, *donors, *self.mask_files, self.vocabulary)

    @property
    def merged(self) -> tuple[ModelReference, ...]:
        """What is merged, as the plan names it, adapters and stacks too; each once."""
        pairs = [each for own in self.sources for each in (own.source_base, own.source_ft)]
        return tuple(dict.fromkeys((self.target, *pairs)))

    @property
    def mask_files(self) -> tuple[ModelReference, ...]:
        """The files that masks are read from, each once."""
        lists = (self.masks, *(source.masks for source in self.sources))
        return tuple(dict.fromkeys(file for masks in lists for file in masks.files()))

    @property
    def identity_document(self) -> dict[str, Any]:
        """The document without ``output.path``: where a result lies does not change it.

        Nor has it the queries of URLs: what is signed anew is the same, and a secret.
        """
        document: dict[str, Any] = without_secrets(self.document)
        output = document.get("output")
        if isinstance(output, dict):
            output.pop("path", None)
            if not output:
                del document["output"]
        return document
