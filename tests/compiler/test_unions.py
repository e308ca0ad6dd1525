"""Rows for a union of vocabularies, or for one tokenizer's tokens, against sums over dictionaries."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import mergeengine
from mergeengine.compiler import alignment
from mergeengine.errors import CheckpointError, PlanError

EMBEDDING, BIAS = "model.embed_tokens.weight", "lm_head.bias"
NAMES = ("t", "a", "b", "c")
Tokens = tuple[list[str], int]  # by their ids, and how many of them are beside the vocabulary
Rows = dict[str, np.ndarray]


def save(folder: Path, tokens: Tokens, seed: int, rows: int | None = None) -> None:
    known, beside = tokens
    rows = len(known) if rows is None else rows
    values = np.random.default_rng(seed).standard_normal((rows, 3))
    folder.mkdir(exist_ok=True)
    save_file({EMBEDDING: values, BIAS: values[:, 0].copy()}, folder / "model.safetensors")
    plain = known[: len(known) - beside]
    document = {
        "added_tokens": [
            {"id": known.index(token), "content": token, "special": True}
            for token in known[len(plain) :]
        ],
        "model": {"vocab": {token: row for row, token in enumerate(plain)}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))


def rows_of(folder: Path, tokens: Tokens, name: str = EMBEDDING) -> Rows:
    values = load_file(folder / "model.safetensors")[name]
    return dict(zip(tokens[0], values, strict=False))


def merged(folder: Path, **keys: object) -> dict[str, np.ndarray]:
    (folder / "plan.yaml").write_text(yaml.safe_dump({"version": 1, **keys}))
    tensors = mergeengine.compile_plan(folder / "plan.yaml").tensors()
    return {name: np.asarray(tensor) for name, tensor in tensors}


def union(first: Tokens, others: list[Tokens]) -> list[str]:
    """The first's tokens, the others' ordinary ones, and those beside their vocabularies."""
    order = list(first[0])
    for part in (lambda n, beside: slice(0, n - beside), lambda n, beside: slice(n - beside, n)):
        for known, beside in others:
            order += [t for t in known[part(len(known), beside)] if t not in order]
    return order


def stand_in(token: str, models: dict[str, Rows], own_target: bool) -> np.ndarray:
    if own_target and token in models["t"]:
        return models["t"][token]
    having = [rows[token] for rows in models.values() if token in rows]
    return np.mean(having, axis=0) if having else np.zeros_like(next(iter(models["a"].values())))


def complete(
    token: str, name: str, models: dict[str, Rows], chosen: dict[str, Any], own_target: bool
) -> np.ndarray:
    """A model's row for a token."""
    row, force = chosen.get(token, (None, False))
    if token in models[name] and not force:
        return models[name][token]
    return stand_in(token, models, own_target) if row is None else row


def vocabularies() -> st.SearchStrategy[Tokens]:
    tokens = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=10, unique=True)
    return tokens.flatmap(lambda known: st.tuples(st.just(known), st.integers(0, len(known) - 1)))


CHOICES = {  # what a plan says, and the row that it means
    "zeros": ("zeros", lambda models, token: np.zeros(3)),
    "a source": ("b", lambda models, token: models["b"].get(token)),
    "another token": (
        {"of": "b", "token": "x"},
        lambda models, token: models["b"]["x"],
    ),
    "a row": ({"of": "target", "row": 0}, lambda models, token: next(iter(models["t"].values()))),
}


@given(
    known=st.lists(vocabularies(), min_size=4, max_size=4),
    kind=st.sampled_from(["linear", "linear to a target", "task_arithmetic", "transfer"]),
    mode=st.sampled_from(["union", "tokenizer"]),
    choices=st.lists(
        st.tuples(st.sampled_from("abcz"), st.sampled_from(list(CHOICES)), st.booleans()),
        max_size=3,
        unique_by=lambda choice: choice[0],
    ),
    most_runs=st.sampled_from([0, 1, 64]),
)
@settings(max_examples=60, deadline=None)
def test_every_row(
    known: list[Tokens],
    kind: str,
    mode: str,
    choices: list[tuple[str, str, bool]],
    most_runs: int,
) -> None:
    known[2] = ([*known[2][0], "x"], known[2][1] + 1)
    tokens = dict(zip(NAMES, known, strict=True))
    with TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "MOST_RUNS", most_runs)
        folder = Path(place)
        for number, name in enumerate(NAMES):
            save(folder / name, tokens[name], number)
        own_target = kind != "linear"
        merge = ("t", "a", "b") if kind != "linear" else ("a", "b", "c")
        models = {name: rows_of(folder / name, tokens[name]) for name in merge}
        if "t" not in models:  # the target is the first
            models_by_role = {"t": models["a"], **models}
        else:
            models_by_role = models
        written, chosen = [], {}
        for token, choice, force in choices:
            origin, row = CHOICES[choice]
            found = row(models_by_role, token)
            if found is None or (choice == "a source" and token not in models["b"]):
                continue
            written.append({"token": token, "from": origin, "force": force})
            chosen[token] = found, force
        donor = tokens["t" if own_target else "a"]
        order = union(donor, [tokens[name] for name in merge]) if mode == "union" else donor[0]
        order = [*order, *(token for token in chosen if token not in order)]
        sources: list[dict[str, Any]] = [
            {"name": name, "model": f"./{name}", "scaling": weight}
            for name, weight in (("a", 0.3), ("b", 0.9), ("c", -0.5))
            if name in merge
        ]
        if kind == "transfer":
            sources = [
                {"name": s["name"], "source_base": "./c", "source_ft": s["model"], "scaling": s["scaling"]}
                for s in sources
            ]
        output = merged(
            folder,
            method=kind.split()[0],
            sources=sources,
            vocabulary={"rows": mode, "tokens": written},
            output={"tokenizer": "target"},
            **({"target": "./t"} if own_target else {}),
        )
        weights = {source["name"]: source["scaling"] for source in sources}
        base = rows_of(folder / "c", tokens["c"])
        assert len(output[EMBEDDING]) == len(order)
        for row, token in enumerate(order):
            whole = {
                name: complete(token, name, models, chosen, own_target)
                if not (token not in chosen and not any(token in each for each in models.values()))
                else np.zeros(3)
                for name in models
            }
            if kind.startswith("linear"):
                total = sum(weights.values())
                expected = sum(weights[n] * whole[n] for n in weights) / total
            elif kind == "task_arithmetic":
                expected = whole["t"] + sum(w * (whole[n] - whole["t"]) for n, w in weights.items())
            else:
                forced = chosen.get(token, (None, False))[1]
                expected = whole["t"] + sum(
                    w * (models[n][token] - base[token])
                    for n, w in weights.items()
                    if not forced and all(token in each for each in (models["t"], models[n], base))
                )
            np.testing.assert_allclose(output[EMBEDDING][row], expected, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(output[BIAS][row], expected[0], rtol=1e-12, atol=1e-12)
