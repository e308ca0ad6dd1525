"""What the configs of models say about whether and how they fit each other."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeengine.checkpoints.aliases import is_embedding
from mergeengine.checkpoints.documents import shown
from mergeengine.lazy.weight import Weight

Config = Mapping[str, Any]

# The same quantity under its several spellings; compared key by key, each under its own name.
LAYER_COUNTS = {
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers",
    "encoder_layers", "decoder_layers",
}  # fmt: skip
_HIDDEN = {"hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim"}
_MUST_AGREE = LAYER_COUNTS | _HIDDEN | {
    "model_type",
    "num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads", "num_kv_heads",
    "encoder_attention_heads", "decoder_attention_heads", "head_dim", "d_kv",
    "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "n_inner",
    "hidden_dim", "d_ff", "ffn_dim", "ffn_hidden_size", "encoder_ffn_dim", "decoder_ffn_dim",
    "num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts",
}  # fmt: skip
_WORTH_A_NOTE = {
    "architectures", "vocab_size", "tie_word_embeddings",
    "max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len",
    "sliding_window", "use_sliding_window", "max_window_layers",
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon",
    "hidden_act", "hidden_activation", "activation_function",
    "rope_local_base_freq", "partial_rotary_factor", "rotary_pct", "rotary_dim", "rotary_emb_base",
    "num_experts_per_tok",
}  # fmt: skip
TEXT = "text_config"
_NESTED_LEVELS = 4  # text_config, vision_config and the like inside each other
_LAYER_NAMES = {"layers", "layer", "h", "block", "blocks"}
_IN_LAYER = re.compile(r"(?P<stack>[^0-9.][^.]*(?:\.[^0-9.][^.]*)*)\.(?P<number>[0-9]{1,6})\.")


@dataclass(frozen=True, slots=True)
class ConfigReport:
    """How the configs of several models differ: what forbids a merge, and what is to be known."""

    errors: list[str]
    notes: list[str]


def compare_configs(
    target_label: str,
    target: Config | None,
    others: Sequence[tuple[str, Config | None]],
    *,
    layers_differ: bool = False,
    names_differ: bool = False,
) -> ConfigReport:
    """Compare configs with the target's, on the keys that both have, nested ones included.

    Shapes and the model's type must agree; settings that weights were trained under (rope, norm,
    positions, vocabulary) are notes: the result keeps the target's. Where the plan maps layers
    (``layers_differ``) or names (``names_differ``), so are the number of layers and the type.
    """
    errors: list[str] = []
    notes: list[str] = []
    must_agree = set(_MUST_AGREE)
    must_agree -= LAYER_COUNTS if layers_differ else set()
    must_agree -= {"model_type"} if names_differ else set()
    flat_target = dict(_flat(target or {}))
    flat_others = [
        (label, _beside(target or {}, config or {}, dict(_flat(config or {}))))
        for label, config in others
    ]
    for key, value in flat_target.items():
        having = [(label, flat[key]) for label, flat in flat_others if key in flat]
        if all(other == value for _, other in having):
            continue
        last = key.rpartition(".")[2]
        if last in must_agree:
            differing = [pair for pair in having if pair[1] is not None and pair[1] != value]
            if value is not None and differing:  # null is "derived from the others"
                errors.append(_difference(key, [(target_label, value), *differing]))
        else:
            notes.append(_difference(key, [(target_label, value), *having]))
    return ConfigReport(errors, notes)


def contradictions(config: Config | None, tensors: Mapping[str, Weight]) -> list[str]:
    """Where a config does not describe the tensors it lies beside, one sentence each."""
    if config is None:
        return []
    text = config.get(TEXT)
    text = text if isinstance(text, dict) else config
    return [*_embedding_contradictions(text, tensors), *_layer_contradiction(text, tensors)]


def _embedding_contradictions(config: Config, tensors: Mapping[str, Weight]) -> Iterator[str]:
    embeddings = [t for t in tensors.values() if is_embedding(t.name) and len(t.shape) == 2]
    rows = config.get("vocab_size")
    if embeddings and type(rows) is int and all(t.shape[0] != rows for t in embeddings):
        first = embeddings[0]
        yield f"config.json says vocab_size {rows}, but {first.name} has {first.shape[0]} rows"
    # An embedding may be of another width than the model behind it (ALBERT, ELECTRA, OPT).
    widths = [config.get(key) for key in ("hidden_size", *sorted(_HIDDEN))]
    known = [width for width in widths if type(width) is int]
    if embeddings and known and all(t.shape[1] not in known for t in embeddings):
        first = embeddings[0]
        yield (
            f"config.json says hidden size {known[0]}, but {first.name} has {first.shape[1]} "
            "columns"
        )


def _layer_contradiction(config: Config, tensors: Mapping[str, Weight]) -> Iterator[str]:
    counts = [(key, config[key]) for key in sorted(LAYER_COUNTS) if type(config.get(key)) is int]
    stacks: dict[str, set[int]] = {}
    for name in tensors:
        # The outermost numbered component: what is numbered inside a layer is not a layer.
        if found := _IN_LAYER.match(name):
            stacks.setdefault(found["stack"], set()).add(int(found["number"]))
    found_counts = {
        stack: len(numbers)
        for stack, numbers in stacks.items()
        if stack.rpartition(".")[2] in _LAYER_NAMES
    }
    extra = config.get("num_nextn_predict_layers")  # stored behind the others (DeepSeek-V3)
    allowed = {count for _, count in counts}
    allowed |= {count + extra for count in allowed} if type(extra) is int else set()
    if counts and found_counts and allowed.isdisjoint(found_counts.values()):
        stack = max(found_counts, key=lambda stack: found_counts[stack])
        key, count = counts[0]
        yield (
            f"config.json says {key} {count}, but the tensors have {found_counts[stack]} of "
            f"{stack}.N"
        )


def _beside(target: Config, config: Config, flat: dict[str, Any]) -> dict[str, Any]:
    """The keys of a config as the target has them: a language model's own config is the
    ``text_config`` of what wraps it."""
    wrapped = [isinstance(each.get(TEXT), dict) for each in (target, config)]
    if wrapped == [True, False]:
        return {f"{TEXT}.{key}": value for key, value in flat.items()}
    if wrapped == [False, True]:
        inner = f"{TEXT}."
        return {k.removeprefix(inner): v for k, v in flat.items() if k.startswith(inner)}
    return flat


def _flat(config: Config) -> Iterator[tuple[str, Any]]:
    """The keys that are compared, with their values; those of nested configs have dots."""
    for prefix, part in _nested(config):
        for key, value in part.items():
            if key in _MUST_AGREE or key in _WORTH_A_NOTE:
                yield prefix + key, value
        for key, value in _rope(part):
            yield prefix + key, value


def _nested(
    config: Config, prefix: str = "", levels: int = _NESTED_LEVELS
) -> Iterator[tuple[str, Config]]:
    """A config and those inside it (`text_config`, ...), each with the prefix of its keys."""
    yield prefix, config
    for key, value in config.items() if levels else ():
        if key.endswith("_config") and key != "quantization_config" and isinstance(value, dict):
            yield from _nested(value, f"{prefix}{key}.", levels - 1)


def _rope(config: Config) -> Iterator[tuple[str, Any]]:
    """Rope settings in one form: `rope_parameters`, or the older `rope_theta`, `rope_scaling`."""
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict):
        scaling = config.get("rope_scaling")
        parameters = dict(scaling) if isinstance(scaling, dict) else {}
        if "rope_theta" in config:
            parameters["rope_theta"] = config["rope_theta"]
        elif not parameters:
            return
    settings = dict(parameters)
    theta = settings.pop("rope_theta", None)
    kind = settings.pop("type", None)
    settings.setdefault("rope_type", kind or "default")
    if theta is not None:
        yield "rope_theta", theta
    yield "rope_scaling", None if settings == {"rope_type": "default"} else settings


def _difference(key: str, values: Sequence[tuple[str, Any]]) -> str:
    return f"{key}: " + ", ".join(f"{label} {shown(value)}" for label, value in values)
