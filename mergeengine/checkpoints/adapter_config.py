"""What adapter_config.json of a PEFT adapter says, as far as it decides the merged weights."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergeengine.checkpoints.documents import listing, shown
from mergeengine.errors import CheckpointError

_WAY_OUT = "let PEFT merge it into its base (merge_and_unload, save_pretrained), if it can"

# Settings under which what an adapter does is not base + scale · B·A for all inputs, or not of the
# tensors that it stores.
_REFUSED = {
    "alora_invocation_tokens": "acts on a part of the tokens only, so no weights are equal to it",
    "arrow_config": "is a router between adapters, so no weights are equal to it",
    "layer_replication": "repeats layers of its base",
    "use_qalora": "pools its inputs in groups",
    "use_bdlora": "has block-diagonal factors",
    "monteclora_config": "draws its weights at random",
    "kasa_config": "changes its base by a decomposition",
}
# Initialisations that subtract B·A from the base before training, by their first word.
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_LONGEST_PATTERN = 300
_MOST_REPEATS = 4
_NESTED_REPEAT = re.compile(r"[)}*+?][*+{]")  # repeats of repeats: their search may never end


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """How the factors of a LoRA adapter are scaled and where they lie.

    ``scale`` is alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023, arXiv:2312.03732).
    ``tokens`` are the rows of embeddings that were trained by themselves, by the module's name; ""
    is any. ``base`` and ``revision`` are the model that it was trained on, as it says.
    """

    rank: int
    alpha: float
    ranks: Mapping[str, float]
    alphas: Mapping[str, float]
    rank_stabilised: bool
    dora: bool
    transposed: bool
    parameters: tuple[str, ...]
    tokens: Mapping[str, tuple[int, ...]]
    base: str | None
    revision: str | None
    changed_base: str | None

    @property
    def described(self) -> str:
        """``DoRA, rank 16, alpha 32``"""
        kind = "DoRA" if self.dora else "rsLoRA" if self.rank_stabilised else "LoRA"
        some = ", other ranks or alphas for some modules" if self.ranks or self.alphas else ""
        return f"{kind}, rank {self.rank}, alpha {self.alpha:g}{some}"

    def rank_of(self, module: str) -> int:
        """The rank of a module's factors."""
        return int(_matching(self.ranks, module, self.rank))

    def scale_of(self, module: str) -> float:
        """What B·A of a module is multiplied by."""
        rank = self.rank_of(module)
        alpha = _matching(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def read_settings(config: Mapping[str, Any], label: str) -> LoraSettings:
    """The settings of a LoRA adapter.

    CheckpointError, with the way out, for other kinds of adapters, for variants that are not
    base + scale · B·A, and for what is malformed; ``label`` names the file.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{label}: the adapter is of the kind {shown(kind)}; LORA alone is read (with rsLoRA "
            f"and DoRA): {_WAY_OUT}"
        )
    for key, what in _REFUSED.items():
        if config.get(key):
            raise CheckpointError(f"{label}: an adapter with {key} {what}: {_WAY_OUT}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise CheckpointError(f"{label}: r is {shown(rank)}: expected a whole number from 1")
    begun = config.get("init_lora_weights")
    changed = isinstance(begun, str) and begun.lower().startswith(_CHANGE_BASE)
    parameters = config.get("target_parameters") or []
    if not isinstance(parameters, list) or not all(isinstance(name, str) for name in parameters):
        raise CheckpointError(f"{label}: target_parameters must be a list of names")
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    return LoraSettings(
        rank=rank,
        alpha=_number(alpha, "lora_alpha", label),
        ranks=_patterns(config.get("rank_pattern"), "rank_pattern", label),
        alphas=_patterns(config.get("alpha_pattern"), "alpha_pattern", label),
        rank_stabilised=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
        transposed=bool(config.get("fan_in_fan_out")),
        parameters=tuple(parameters),
        tokens=_tokens(config.get("trainable_token_indices"), label),
        base=base if isinstance(base, str) and base else None,
        revision=revision if isinstance(revision, str) and revision else None,
        changed_base=str(begun) if changed else None,
    )


def _number(value: Any, key: str, label: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _usable(value):
        raise CheckpointError(f"{label}: {key} is {shown(value)}: expected a finite number")
    return float(value)


def _usable(value: float) -> bool:
    return abs(value) < 1e30  # False for NaN


def _patterns(found: Any, key: str, label: str) -> Mapping[str, float]:
    """Regular expressions for modules, in order. They are a stranger's: only quick ones pass."""
    if not found:
        return {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{label}: {key} must map modules to numbers")
    for pattern, value in found.items():
        number = _number(value, f"{key} of {shown(pattern)}", label)
        if key == "rank_pattern" and (number < 1 or number != int(number)):
            raise CheckpointError(f"{label}: {key} of {shown(pattern)} is no rank: {number}")
        slow = (
            len(pattern) > _LONGEST_PATTERN
            or _NESTED_REPEAT.search(pattern)
            or sum(map(pattern.count, "*+{")) > _MOST_REPEATS
        )
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError):
            slow = True
        if slow:
            raise CheckpointError(
                f"{label}: {key} has {shown(pattern)}, which is not a regular expression or one "
                "that could take very long: name the modules in full"
            )
    return {pattern: float(value) for pattern, value in found.items()}


def _matching(patterns: Mapping[str, float], module: str, otherwise: float) -> float:
    """The number of the first pattern that is the end of a module's name, as PEFT has it."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


def _tokens(found: Any, label: str) -> Mapping[str, tuple[int, ...]]:
    if not found:
        return {}
    named = found if isinstance(found, dict) else {"": found}
    for module, rows in named.items():
        whole = isinstance(rows, list) and {int}.issuperset(map(type, rows))
        if not whole or len(set(rows)) != len(rows) or min(rows, default=0) < 0:
            raise CheckpointError(
                f"{label}: trainable_token_indices must be ids of tokens, each once, found "
                f"{listing([rows])}" + (f" for {shown(module)}" if module else "")
            )
    return {module: tuple(rows) for module, rows in named.items()}
