"""Versions of a tiny model whose vocabularies differ, and what a merge of them must be."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exact import Expected, Tensors, round_once, stored
from models import perturb
from tiny_architectures import ARCHITECTURES
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# Tensors that have an entry for each token, in the architectures of these tests.
PER_TOKEN = (
    "embed_tokens.weight", "lm_head.weight", "wte.weight", "word_embeddings.weight",
    "predictions.bias", "predictions.decoder.weight", "predictions.decoder.bias", "shared.weight",
)  # fmt: skip
WORDS = [f"w{n}" for n in range(100)]


@dataclass(frozen=True)
class Version:
    """A model's tokens by their ids, and the rows that its embedding has. ``listed`` is whether its
    tokenizer lies beside it."""

    tokens: list[str]
    rows: int
    listed: bool = True
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def ids(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    def at(self, row: int) -> str | None:
        return self.tokens[row] if row < len(self.tokens) else None


def tokenizer(tokens: list[str]) -> PreTrainedTokenizerFast:
    made = Tokenizer(
        models.WordLevel({token: n for n, token in enumerate(tokens)}, unk_token=tokens[0])
    )
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token=tokens[0], eos_token=tokens[2])


def save(
    folder: Path, version: Version, seed: int, name: str = "llama", dtype: str = "float32"
) -> None:
    torch.manual_seed(0)
    architecture = ARCHITECTURES[name]
    layers = {"n_layer": 1} if name == "gpt2" else {"num_hidden_layers": 1, "num_layers": 1}
    model = architecture.build(**{**layers, **version.config, "vocab_size": version.rows})
    perturb(model, seed, 0.3)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    if version.listed:
        tokenizer(version.tokens).save_pretrained(folder)


def output_tokens(target: Version, ft: Version) -> list[str | None]:
    """The tokens of the output's rows, with the fine-tune's tokenizer: where it has none, the
    target's of the same id, unless the tokenizer knows it."""
    rows: list[str | None] = []
    for row in range(max(target.rows, ft.rows)):
        token = ft.at(row)
        if token is None and target.at(row) not in ft.ids:
            token = target.at(row)
        rows.append(token)
    return rows


def merged(
    folder: Path,
    target: Version,
    base: Version,
    ft: Version,
    tokens: list[str | None],
    alpha: float,
) -> dict[str, Expected]:
    """The output, row by row: by its token where it has one, else by its index, without a delta
    unless no row has a token."""
    of = {role: stored(folder / role) for role in ("target", "base", "ft")}
    versions = {"target": target, "base": base, "ft": ft}

    def place(role: str, row: int, token: str | None) -> int | None:
        version = versions[role]
        if token is not None:
            return version.ids.get(token)
        return row if row < version.rows and version.at(row) is None else None

    result = {}
    for name, tensor in of["target"].items():
        values = {role: _float64(_tensor(of[role], name)) for role in of}
        if not name.endswith(PER_TOKEN):
            exact = values["target"] + alpha * (values["ft"] - values["base"])
        else:
            exact = np.zeros((len(tokens), *tensor.shape[1:]))
            for row, token in enumerate(tokens):
                t, b, f = (place(role, row, token) for role in ("target", "base", "ft"))
                if t is not None:
                    exact[row] = values["target"][t]
                    if b is not None and f is not None and (token is not None or not any(tokens)):
                        exact[row] += alpha * (values["ft"][f] - values["base"][b])
                elif f is not None:
                    exact[row] = values["ft"][f]
        result[name] = Expected(exact, abs(exact) + 1, round_once(exact, tensor.dtype), ())
    return result


def _tensor(tensors: Tensors, name: str) -> torch.Tensor:
    """A head that is tied is the embedding."""
    if name in tensors:
        return tensors[name]
    (embedding,) = (t for n, t in tensors.items() if n.endswith("embed_tokens.weight"))
    return embedding


def _float64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.to(torch.float64).numpy()
