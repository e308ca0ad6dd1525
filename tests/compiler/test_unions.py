"""Rows for a union of vocabularies, or for a tokenizer's tokens, against sums over dictionaries."""

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
from mergeengine.checkpoints.checkpoint import open_checkpoint
from mergeengine.checkpoints.vocabulary import token_ids
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
    return np.mean(having, axis=0) if having else np.zeros(3)


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
    multiple=st.sampled_from([1, 1, 8]),
    most_runs=st.sampled_from([0, 1, 64]),
)
@settings(max_examples=60, deadline=None)
def test_every_row(
    known: list[Tokens],
    kind: str,
    mode: str,
    choices: list[tuple[str, str, bool]],
    multiple: int,
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
        roles = models if own_target else {"t": models["a"], **models}
        written, chosen = [], {}
        for token, choice, force in choices:
            origin, row = CHOICES[choice]
            found = row(roles, token)
            if found is None:
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
            for source in sources:
                source.update(source_base="./c", source_ft=source.pop("model"))
        output = merged(
            folder,
            method=kind.split()[0],
            sources=sources,
            vocabulary={"rows": mode, "tokens": written, "pad_to_multiple_of": multiple},
            output={"tokenizer": "target"},
            **({"target": "./t"} if own_target else {}),
        )
        weights = {source["name"]: source["scaling"] for source in sources}
        base = rows_of(folder / "c", tokens["c"])
        padding = -len(order) % multiple
        whole = {
            name: np.array([complete(t, name, models, chosen, own_target) for t in order])
            for name in models
        }
        whole = {name: padded(rows, padding) for name, rows in whole.items()}
        if kind.startswith("linear"):
            expected = sum(w * whole[n] for n, w in weights.items()) / sum(weights.values())
        elif kind == "task_arithmetic":
            expected = whole["t"] + sum(w * (whole[n] - whole["t"]) for n, w in weights.items())
        else:
            expected = whole["t"].copy()
            for row, token in enumerate(order):
                forced = chosen.get(token, (None, False))[1]
                for name, weight in weights.items():
                    if not forced and all(token in m for m in (models["t"], models[name], base)):
                        expected[row] += weight * (models[name][token] - base[token])
        assert np.allclose(output[EMBEDDING], expected, rtol=1e-12, atol=1e-12)
        assert np.allclose(output[BIAS], expected[:, 0], rtol=1e-12, atol=1e-12)


def padded(rows: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([rows, np.repeat(rows.mean(axis=0, keepdims=True), count, axis=0)])


MODELS = [{"name": "a", "model": "./a"}, {"name": "b", "model": "./b"}]


def linear(folder: Path, vocabulary: object, **keys: object) -> dict[str, np.ndarray]:
    return merged(folder, method="linear", sources=MODELS, vocabulary=vocabulary, **keys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "a", (["p", "q", "<a>"], 1), 1)
    save(tmp_path / "b", (["q", "r", "<b>"], 1), 2)
    return tmp_path


def test_padding_rows_of_the_inputs_are_left_out(folder: Path) -> None:
    save(folder / "a", (["p", "q"], 0), 1, rows=8)
    save(folder / "b", (["p", "q"], 0), 2, rows=8)
    assert [len(linear(folder, mode)[EMBEDDING]) for mode in ("align", "union")] == [8, 2]


def test_vocabularies_that_are_the_same_are_left_alone(folder: Path) -> None:
    save(folder / "b", (["p", "q", "<a>"], 1), 2)
    expected = (load_file(folder / "a/model.safetensors")[EMBEDDING] * 0.5) + (
        load_file(folder / "b/model.safetensors")[EMBEDDING] * 0.5
    )
    for mode in ("union", "tokenizer", "index", "align", "error"):
        assert np.allclose(linear(folder, mode)[EMBEDDING], expected)


def test_by_index_whatever_the_tokens_are(folder: Path) -> None:
    a, b = (load_file(folder / name / "model.safetensors")[EMBEDDING] for name in "ab")
    assert np.allclose(linear(folder, "index")[EMBEDDING], (a + b) / 2)
    save(folder / "b", (["q", "r", "<b>"], 1), 2, rows=5)
    with pytest.raises(CheckpointError) as raised:
        linear(folder, "index")
    assert str(raised.value) == (
        "the vocabularies differ, and the plan says `vocabulary: index`:\n"
        "    ./a: 3 rows\n"
        "    ./b: 5 rows\n"
        "  `vocabulary: align` matches rows by their tokens"
    )


def test_one_without_a_list_has_the_donors_tokens(folder: Path) -> None:
    """But not those that are added to them, whatever rows it has beyond."""
    save(folder / "c", (["p", "q", "<a>", "x", "y"], 0), 3)
    (folder / "c" / "tokenizer.json").unlink()
    values = {name: load_file(folder / name / "model.safetensors")[EMBEDDING] for name in "abc"}
    sources = [*MODELS, {"name": "c", "model": "./c"}]
    with pytest.raises(CheckpointError, match=r"\./c has no list of tokens to match its rows by"):
        merged(folder, method="linear", sources=sources, vocabulary="union")
    sources = [MODELS[0], {"name": "c", "model": "./c"}]
    tokens = [{"token": "<new>", "from": {"of": "a", "row": 0}}]
    found = merged(
        folder, method="linear", sources=sources, vocabulary={"rows": "union", "tokens": tokens}
    )[EMBEDDING]
    assert np.allclose(found[:3], (values["a"] + values["c"][:3]) / 2)
    assert np.allclose(found[3], values["a"][0])


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        ("b", "./b has no row for the token `<new>`"),
        ({"of": "b", "token": "p"}, "./b has no row for the token `p`"),
        ({"of": "source_ft", "row": 3}, "./a has 3 rows, and no row 3"),
    ],
)
def test_rows_that_there_are_not(folder: Path, origin: object, told: str) -> None:
    with pytest.raises(PlanError) as raised:
        linear(folder, {"rows": "union", "tokens": [{"token": "<new>", "from": origin}]})
    place, _, text = str(raised.value).partition(": ")
    assert place.rpartition("plan.yaml:")[2].count(":") == 1
    assert text == told


def test_no_tokenizer_at_all(folder: Path) -> None:
    (folder / "a" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"^`vocabulary: union` makes a row for each token"):
        linear(folder, "union")


def test_tokens_without_a_row_are_told(folder: Path) -> None:
    save(folder / "c", (["p", "q", "z"], 0), 3)
    found = linear(folder, "tokenizer", output={"tokenizer": "./c"})[EMBEDDING]
    assert np.array_equal(found[2], np.zeros(3))
    (folder / "plan.yaml").write_text(
        yaml.safe_dump(
            {
                "version": 1,
                "method": "linear",
                "sources": MODELS,
                "vocabulary": "tokenizer",
                "output": {"tokenizer": "./c", "path": "./out"},
            }
        )
    )
    result = mergeengine.run(folder / "plan.yaml")
    assert any("rows are zeros" in text and "(z)" in text for text in result.warnings)


def test_masks_name_tokens_of_the_union(folder: Path) -> None:
    save(folder / "t", (["p", "q", "<t>"], 1), 3)
    found = merged(
        folder,
        target="./t",
        method="task_arithmetic",
        sources=MODELS,
        vocabulary="union",
        output={"tokenizer": "target", "path": "./out"},
        masks=[{"match": "*embed*", "tokens": ["<b>", "q"]}, {"scale": 1}],
    )[EMBEDDING]
    t = rows_of(folder / "t", (["p", "q", "<t>"], 1))
    a, b = rows_of(folder / "a", (["p", "q", "<a>"], 1)), rows_of(folder / "b", (["q"], 0))
    assert np.allclose(found[0], t["p"])
    assert np.allclose(found[1], a["q"] + b["q"] - t["q"])
    mergeengine.run(folder / "plan.yaml")
    ids = token_ids(open_checkpoint(f"{folder}/out", weights="none"), ["r", "<a>", "<b>", "<t>"])
    assert ids == {"<t>": 2, "r": 3, "<a>": 4, "<b>": 5}
