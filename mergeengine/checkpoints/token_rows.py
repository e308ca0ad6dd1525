"""Which token each row of a model's vocabulary tensors stands for.

Tokens are kept as 64-bit digests, eight bytes a row: a dictionary of 256,000 texts would take more
memory than a merge.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import TypeAlias

import xxhash

from mergeengine.checkpoints.aliases import embeddings, is_embedding, is_head
from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.vocabulary import tokens
from mergeengine.lazy.nodes import Shape

MOST_ROWS = 1 << 24  # that a vocabulary is believed to have
_BIASES = ("predictions.bias", "lm_head.bias")

TokenRows: TypeAlias = "array[int]"
"""The digest of each row's token; 0 for a row without one (padding)."""


def embedding_rows(shapes: Mapping[str, Shape]) -> int | None:
    """Rows of the token embedding; None where there is none, or several of different heights."""
    rows = {shapes[name][0] for name in embeddings(shapes) if len(shapes[name]) == 2}
    return rows.pop() if len(rows) == 1 else None


def vocabulary_rows(checkpoint: Checkpoint) -> int | None:
    """Rows of a checkpoint's token embedding, as ``embedding_rows``."""
    tensors = checkpoint.tensors
    return embedding_rows({name: tensors[name].shape for name in embeddings(tensors)})


def token_dimension(name: str, shape: Shape, rows: int) -> int | None:
    """The dimension of a tensor that has one entry a token: embeddings, heads and their biases, in
    a model whose embedding has ``rows`` rows. None for any other tensor."""
    if len(shape) == 2 and shape[0] == rows and (is_embedding(name) or is_head(name)):
        return 0
    if len(shape) == 1 and shape[0] == rows:
        head = is_head(f"{name.removesuffix('.bias')}.weight") and name.endswith(".bias")
        return 0 if head or f".{name}".endswith(tuple(f".{each}" for each in _BIASES)) else None
    if name.rpartition(".")[2] == "final_logits_bias" and shape == (1, rows):
        return 1
    return None


def token_digest(token: str) -> int:
    """What stands for a token in ``TokenRows``."""
    return xxhash.xxh3_64_intdigest(token.encode(errors="surrogatepass")) or 1


def token_rows(checkpoint: Checkpoint, rows: int | None = None) -> TokenRows | None:
    """The token of each of a model's ``rows`` rows, by its own tokenizer; ids beyond them have no
    row. Without ``rows`` there are as many as the tokenizer has ids. None where the tokenizer's
    files list no tokens, or there are none."""
    table: TokenRows = array("Q", bytes(8 * (rows or 0)))
    most = MOST_ROWS if rows is None else rows
    found = False
    for token, row in tokens(checkpoint):
        found = True
        if row >= most:
            continue
        if row >= len(table):
            table.extend(bytes(row + 1 - len(table)))
        table[row] = token_digest(token)
    return table if found else None
