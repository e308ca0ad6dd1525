"""Rows of the output against a naive count of tokens, for any vocabularies."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import mergeengine
from mergeengine.compiler import alignment
from mergeengine.errors import CheckpointError

EMBEDDING, BIAS = "model.embed_tokens.weight", "lm_head.bias"
ROLES = ("target", "base", "ft")
Vocabulary = tuple[list[str], int]  # tokens by their ids, and rows of padding


def vocabularies() -> st.SearchStrategy[Vocabulary]:
    tokens = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=10, unique=True)
    return st.tuples(tokens, st.integers(0, 3))


def save(folder: Path, vocabulary: Vocabulary, start: int) -> None:
    tokens, padding = vocabulary
    rows = len(tokens) + padding
    folder.mkdir()
    values = torch.arange(start, start + 2 * rows, dtype=torch.float32)
    tensors = {EMBEDDING: values.view(rows, 2), BIAS: values[:rows].neg()}
    save_file(tensors, folder / "model.safetensors")
    document = {"model": {"vocab": {token: row for row, token in enumerate(tokens)}}}
    (folder / "tokenizer.json").write_text(json.dumps(document))


def merged(folder: Path, **keys: object) -> dict[str, torch.Tensor]:
    plan = {"version": 1, "target": "./target", "source_base": "./base", "source_ft": "./ft"}
    (folder / "plan.yaml").write_text(yaml.safe_dump({**plan, "scaling": 1.0, **keys}))
    return dict(mergeengine.compile_plan(folder / "plan.yaml").tensors())


def rows_of(mode: str, target: Vocabulary, ft: Vocabulary) -> list[str | None]:
    """The token of each row of the output."""
    (old, old_padding), (new, new_padding) = target, ft
    if mode == "target":
        return [*old, *[None] * old_padding]
    rows: list[str | None] = [*new, *[None] * new_padding]
    if mode == "align":
        rows += [None] * (len(old) + old_padding - len(rows))
        for row, token in enumerate(old):
            if rows[row] is None and token not in new:
                rows[row] = token
    return rows


@given(
    versions=st.tuples(vocabularies(), vocabularies(), vocabularies()),
    mode=st.sampled_from(["align", "target", "source_ft"]),
    most_runs=st.sampled_from([0, 1, 64]),
)
@settings(max_examples=120)
def test_every_row(versions: tuple[Vocabulary, ...], mode: str, most_runs: int) -> None:
    with TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "MOST_RUNS", most_runs)
        folder = Path(place)
        for number, (role, vocabulary) in enumerate(zip(ROLES, versions, strict=True)):
            save(folder / role, vocabulary, 100 * number + 1)
        stored = [load_file(folder / role / "model.safetensors") for role in ROLES]
        output = merged(folder, vocabulary=mode)
        expected = rows_of(mode, versions[0], versions[2])
        same = versions.count(versions[0]) == 3  # then even padding gets its delta
        for name in (EMBEDDING, BIAS):
            assert len(output[name]) == len(expected)
            for row, token in enumerate(expected):
                found = [
                    tensors[name][place] if place is not None else None
                    for tensors, vocabulary in zip(stored, versions, strict=True)
                    for place in [place_of(vocabulary, row, token)]
                ]
                assert bool(
                    (output[name][row] == value(token is not None or same, *found)).all()
                ), (name, row)


def place_of(vocabulary: Vocabulary, row: int, token: str | None) -> int | None:
    tokens, padding = vocabulary
    if token is not None:
        return tokens.index(token) if token in tokens else None
    return row if len(tokens) <= row < len(tokens) + padding else None


def value(
    changes: bool,
    target: torch.Tensor | None,
    base: torch.Tensor | None,
    ft: torch.Tensor | None,
) -> torch.Tensor:
    if target is None:
        return torch.tensor(0.0) if ft is None else ft
    return target if base is None or ft is None or not changes else target + (ft - base)


def test_another_tokenizer(tmp_path: Path) -> None:
    for number, role in enumerate(ROLES):
        save(tmp_path / role, (list("abc"), 1), 100 * number)
    other = tmp_path / "other"
    save(other, (list("cab"), 0), 0)
    output = merged(tmp_path, output={"tokenizer": "./other"})
    stored = [load_file(tmp_path / role / "model.safetensors")[EMBEDDING] for role in ROLES]
    one = stored[0] + (stored[2] - stored[1])
    assert torch.equal(output[EMBEDDING], torch.cat([one[[2, 0, 1]], stored[0][3:]]))
    document = {"model": {"vocab": {"c": 0, "q": 1}}}
    (other / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError) as raised:
        merged(tmp_path, output={"tokenizer": "./other"})
    assert str(raised.value) == (
        "the tokenizer of ./other has 1 tokens that neither the target nor a fine-tune has a row "
        "for (q): choose another with `output.tokenizer`"
    )


def test_several_sources(tmp_path: Path) -> None:
    """Each source's shared tokens get its delta, and a token of both is the mean of theirs."""
    vocabularies = {
        "target": list("abcd"),
        "base": list("abc"),
        "ft": [*"abc", "x", "y"],
        "other": [*"cba", "z", "x"],
    }
    for number, (role, tokens) in enumerate(vocabularies.items()):
        save(tmp_path / role, (tokens, 0), 100 * number)
    of = {
        role: dict(
            zip(tokens, load_file(tmp_path / role / "model.safetensors")[EMBEDDING], strict=True)
        )
        for role, tokens in vocabularies.items()
    }
    sources = [
        {"source_base": "./base", "source_ft": "./ft"},
        {"source_base": "./base", "source_ft": "./other", "scaling": 2.0},
    ]
    plan = {"version": 1, "target": "./target", "sources": sources}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    output = dict(mergeengine.compile_plan(tmp_path / "plan.yaml").tensors())[EMBEDDING]
    shared = [
        of["target"][t] + (of["ft"][t] - of["base"][t]) + 2 * (of["other"][t] - of["base"][t])
        for t in "abc"
    ]
    both = (of["ft"]["x"] + of["other"]["x"]) / 2
    assert torch.equal(output, torch.stack([*shared, both, of["ft"]["y"]]))


@pytest.mark.parametrize(
    "mask", [{"orthogonal_to": "target_shift"}, {"top": 0.5}, {"sign": "target_shift"}]
)
def test_masks_leave_rows_without_a_delta_alone(tmp_path: Path, mask: dict[str, object]) -> None:
    for number, (role, tokens) in enumerate({"target": "abcd", "base": "ba", "ft": "xab"}.items()):
        save(tmp_path / role, (list(tokens), 0), 100 * number)
    stored = {role: load_file(tmp_path / role / "model.safetensors")[EMBEDDING] for role in ROLES}
    output = merged(tmp_path, masks=[mask])[EMBEDDING]
    assert torch.equal(output[0], stored["ft"][0])  # x, copied
    assert torch.equal(output[3], stored["target"][3])  # d, which only the target has


def test_the_fine_tunes_rows_are_kept_whole(tmp_path: Path) -> None:
    for number, (role, tokens) in enumerate({"target": "abc", "base": "a", "ft": "bax"}.items()):
        save(tmp_path / role, (list(tokens), 1), 100 * number)
    ft = load_file(tmp_path / "ft" / "model.safetensors")[EMBEDDING]
    output = merged(tmp_path, masks=[{"match": "*embed*", "keep": "source_ft"}])[EMBEDDING]
    assert torch.equal(output, ft)
