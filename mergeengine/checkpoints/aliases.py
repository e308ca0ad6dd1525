"""Tied weights: one matrix under two names, of which a file may hold either or both.

No table of architectures: token embeddings and output heads are known by how the field names
them, and two of them are one where nothing speaks against it (same shape, not declared untied).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.reading import opened_file
from mergeengine.lazy.stored import Stored
from mergeengine.lazy.weight import Weight, node_of

# Endings of tensor names, whole components. Where several tied embeddings are stored, the first
# ending named here is preferred: a decoder's is what its head is tied to.
_EMBEDDINGS = (
    "decoder.embed_tokens.weight",
    "shared.weight",
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
    "backbone.embeddings.weight",
    "backbone.embedding.weight",
)
_HEADS = (
    "lm_head.weight",
    "lm_head.decoder.weight",
    "generator_lm_head.weight",
    "predictions.decoder.weight",
    "vocab_projector.weight",
    "embed_out.weight",
    "proj_out.weight",
    "output.weight",
)
# The bias of a masked-language head is stored beside its projection or inside it.
_BIASES = (
    ("predictions.bias", "predictions.decoder.bias"),
    ("lm_head.bias", "lm_head.decoder.bias"),
)
_BLOCK = 4 << 20


def alias_of(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> str | None:
    """The tensor of `checkpoint` that holds the values of `name`, which it is tied to.

    None where `name` is no embedding or head, where there is none of this shape, or where the
    config says that embeddings are not tied. What is called `shared` is one for encoder and
    decoder even then: the config speaks of the head.
    """
    candidates = _tied(checkpoint, name, shape)
    if _untied(checkpoint.config):
        candidates = (other for other in candidates if _is_shared(name, other))
    return next(candidates, None)


def redundant_alias(checkpoint: Checkpoint, name: str) -> str | None:
    """Another tensor of `checkpoint` that `name` only repeats: tied to it, the same bytes.

    The bytes are compared, whatever the config says; for that a hub model's files that hold the
    two are fetched.
    """
    tensor = checkpoint.tensors[name]
    for other in _tied(checkpoint, name, tensor.shape):
        if _same_bytes(checkpoint, tensor, checkpoint.tensors[other]):
            return other
    return None


def is_embedding(name: str) -> bool:
    """Whether a tensor is a token embedding, by its name."""
    return _ends(name, _EMBEDDINGS) and not _in_layer(name)


def embeddings(names: Iterable[str]) -> Iterator[str]:
    """The token embeddings among many names."""
    return (name for name in names if name.endswith(_EMBEDDINGS) and is_embedding(name))


def is_head(name: str) -> bool:
    """Whether a tensor is an output projection onto the vocabulary, by its name."""
    return _ends(name, _HEADS) and not _in_layer(name)


def _tied(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Iterator[str]:
    """Other tensors of the checkpoint that `name` may be tied to, the likeliest first.

    Only an embedding or head looks through the names: experts that are missing come in thousands.
    """

    def fits(other: str) -> bool:
        stored = checkpoint.tensors.get(other)
        return stored is not None and stored.shape == shape and other != name

    for pair in _BIASES:
        for ending, twin in (pair, pair[::-1]):
            if _ends(name, (ending,)) and fits(other := name.removesuffix(ending) + twin):
                yield other
    if is_embedding(name) or is_head(name):
        candidates = (
            other for other in checkpoint.tensors if is_embedding(other) or is_head(other)
        )
        yield from sorted(filter(fits, candidates), key=_preference)


def _preference(name: str) -> int:
    endings = (*_EMBEDDINGS, *_HEADS)
    return next(rank for rank, ending in enumerate(endings) if _ends(name, (ending,)))


def _is_shared(one: str, two: str) -> bool:
    both_embeddings = is_embedding(one) and is_embedding(two)
    return both_embeddings and (_ends(one, ("shared.weight",)) or _ends(two, ("shared.weight",)))


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return name.endswith(endings) and f".{name}".endswith(tuple(f".{e}" for e in endings))


def _in_layer(name: str) -> bool:
    return any(part.isdecimal() for part in name.split("."))


def _untied(config: Mapping[str, Any] | None) -> bool:
    if config is None:
        return False
    text = config.get("text_config")
    parts = (config, text if isinstance(text, dict) else {})
    said = [part["tie_word_embeddings"] for part in parts if "tie_word_embeddings" in part]
    return bool(said) and said[0] is False


def _same_bytes(checkpoint: Checkpoint, one: Weight, two: Weight) -> bool:
    if one.dtype != two.dtype:
        return False
    if not isinstance(one, Stored) or not isinstance(two, Stored):
        return node_of(one) is node_of(two)
    checkpoint.fetch([one.file, two.file])
    with opened_file(one.file) as read_one, opened_file(two.file) as read_two:
        for start in range(0, one.nbytes, _BLOCK):
            size = min(_BLOCK, one.nbytes - start)
            if read_one(one.offset + start, size) != read_two(two.offset + start, size):
                return False
    return True
