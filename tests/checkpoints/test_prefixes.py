"""Prefixes that differ are found where they are certain, and only there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeengine.checkpoints.prefixes import Pair, find_prefixes

BERT = {
    f"encoder.layer.{n}.{part}.weight": (8, 8)
    for n in range(3)
    for part in ("attention.self.query", "attention.self.key", "output.dense")
} | {"embeddings.word_embeddings.weight": (30, 8)}
LLAMA = {
    f"layers.{n}.{part}.weight": (8, 8) for n in range(3) for part in ("mlp.up_proj", "norm")
} | {"embed_tokens.weight": (30, 8), "norm.weight": (8,)}


def prefixed(prefix: str, names: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {prefix + name: shape for name, shape in names.items()}


@pytest.mark.parametrize(
    ("target", "other", "pairs"),
    [
        (prefixed("bert.", BERT), BERT, (("bert.", ""),)),
        (BERT, prefixed("bert.", BERT), (("", "bert."),)),
        (prefixed("model.language_model.", LLAMA), prefixed("model.", LLAMA),
         (("model.language_model.", "model."),)),
        (prefixed("model.language_model.", LLAMA), prefixed("language_model.model.", LLAMA),
         (("model.language_model.", "language_model.model."),)),
        (prefixed("a.", BERT) | prefixed("b.", LLAMA), BERT | LLAMA, (("a.", ""), ("b.", ""))),
        (prefixed("bert.", BERT) | {"cls.bias": (30,)}, BERT | {"classifier.weight": (2, 8)},
         (("bert.", ""),)),
    ],
)  # fmt: skip
def test_found(target: dict, other: dict, pairs: tuple[Pair, ...]) -> None:
    assert sorted(find_prefixes(target, other)) == sorted(pairs)


@pytest.mark.parametrize(
    ("target", "other"),
    [
        (LLAMA, prefixed("encoder.", LLAMA) | prefixed("decoder.", LLAMA)),
        (prefixed("encoder.", LLAMA), prefixed("decoder.", LLAMA)),
        ({"lm_head.weight": (30, 8)}, {"score.weight": (30, 8)}),
        ({"norm.weight": (8,)}, {"model.norm.weight": (8,)}),
        (prefixed("bert.", BERT), dict.fromkeys(BERT, (9, 9))),
        (LLAMA, {}),
        ({}, LLAMA),
    ],
)
def test_not_guessed(target: dict, other: dict) -> None:
    assert find_prefixes(target, other) == ()


@given(st.lists(st.from_regex(r"[a-z]{1,3}(\.[a-z0-9]{1,2}){0,4}", fullmatch=True), max_size=20))
def test_what_is_found_names_what_is_there(names: list[str]) -> None:
    half = len(names) // 2
    missing = dict.fromkeys(names[:half], (1,))
    unused = {name: (1,) for name in names[half:] if name not in missing}
    for before, instead in find_prefixes(missing, unused):
        hits = [n for n in missing if n.startswith(before) and instead + n[len(before) :] in unused]
        assert len(hits) >= 2
