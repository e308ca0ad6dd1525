"""Tied weights, stored once, twice, or not at all, and differently in each version."""

import json
from pathlib import Path

import pytest
import torch
from exact import Tensors, expected, stored
from models import Storage, check_output, load, merge, rewrite, save_lineage, save_llama
from tiny_architectures import ARCHITECTURES

from mergeengine.errors import CheckpointError

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def save(folder: Path, *, base: bool, ft: bool, target: bool) -> None:
    """The three versions, each tied or not."""
    ties = {"base": base, "ft": ft, "target": target}
    for number, (role, tied) in enumerate(ties.items()):
        save_llama(folder / role, number, tie_word_embeddings=tied)


def repeat_embedding(tensors: Tensors) -> None:
    tensors[HEAD] = tensors[EMBEDDING].clone()


def check(folder: Path, **heads: str | None) -> None:
    """``heads`` says for base and ft which of their tensors their head is, if any."""
    base, ft, target = (stored(folder / role) for role in ("base", "ft", "target"))
    for tensors, name in ((base, heads.get("base")), (ft, heads.get("ft"))):
        if name is not None:
            tensors[HEAD] = tensors[name]
    check_output(folder, expected(target, [(base, ft, lambda name: 0.7)]))


def note(result, part: str) -> str:
    (found,) = [note for note in result.notes if part in note]
    return found


def test_an_untied_target_takes_its_heads_delta_from_tied_embeddings(tmp_path: Path) -> None:
    save(tmp_path, base=True, ft=True, target=False)
    result = merge(tmp_path, scaling=0.7)
    assert not result.warnings
    for role in ("base", "ft"):
        assert f"{HEAD} ← {EMBEDDING}" in note(result, f"tied weights in ./{role}")
    assert "tie_word_embeddings" in note(result, "tie_word_embeddings")
    check(tmp_path, base=EMBEDDING, ft=EMBEDDING)


def test_only_the_base_is_tied(tmp_path: Path) -> None:
    save(tmp_path, base=True, ft=False, target=False)
    merge(tmp_path, scaling=0.7)
    check(tmp_path, base=EMBEDDING)


def test_only_the_fine_tune_is_tied(tmp_path: Path) -> None:
    save(tmp_path, base=False, ft=True, target=False)
    merge(tmp_path, scaling=0.7)
    check(tmp_path, ft=EMBEDDING)


@pytest.mark.parametrize("role", ["base", "ft"])
def test_a_head_that_an_untied_model_lost_is_missing(tmp_path: Path, role: str) -> None:
    save(tmp_path, base=False, ft=False, target=False)
    rewrite(tmp_path / role, lambda tensors: tensors.pop(HEAD))
    with pytest.raises(CheckpointError) as raised:
        merge(tmp_path)
    assert f"missing in source_{role} (./{role}):\n    {HEAD}\n" in str(raised.value)


def test_a_head_trained_apart_is_an_error_for_a_tied_target(tmp_path: Path) -> None:
    save(tmp_path, base=True, ft=False, target=True)
    with pytest.raises(CheckpointError) as raised:
        merge(tmp_path)
    assert HEAD in str(raised.value)
    assert "on_extra: ignore" in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_head_trained_apart_left_out_when_asked(tmp_path: Path) -> None:
    save(tmp_path, base=True, ft=False, target=True)
    result = merge(tmp_path, scaling=0.7, on_extra="ignore")
    assert HEAD in note(result, "left out, as on_extra says")
    check(tmp_path)


@pytest.mark.parametrize("declared_tied", [True, False])
def test_a_head_that_only_repeats_is_left_out(tmp_path: Path, declared_tied: bool) -> None:
    save(tmp_path, base=True, ft=declared_tied, target=True)
    rewrite(tmp_path / "ft", repeat_embedding)
    result = merge(tmp_path, scaling=0.7)
    assert HEAD in note(result, "tied in the target and repeated in ./ft")
    check(tmp_path)


def test_a_head_stored_twice_everywhere_stays_so(tmp_path: Path) -> None:
    save(tmp_path, base=True, ft=True, target=True)
    for role in ("base", "ft", "target"):
        rewrite(tmp_path / role, repeat_embedding)
    merge(tmp_path, scaling=0.7)
    output = stored(tmp_path / "out")
    assert torch.equal(output[HEAD], output[EMBEDDING])
    check(tmp_path)


def test_a_head_stored_twice_only_in_the_target(tmp_path: Path) -> None:
    save(tmp_path, base=True, ft=True, target=True)
    rewrite(tmp_path / "target", repeat_embedding)
    merge(tmp_path, scaling=0.7)
    output = stored(tmp_path / "out")
    assert torch.equal(output[HEAD], output[EMBEDDING])
    check(tmp_path, base=EMBEDDING, ft=EMBEDDING)


def test_a_head_stored_twice_only_in_the_base_changes_nothing(tmp_path: Path) -> None:
    save(tmp_path, base=True, ft=True, target=True)
    rewrite(tmp_path / "base", repeat_embedding)
    merge(tmp_path, scaling=0.7)
    check(tmp_path)


# What a file may hold besides what save_pretrained leaves of the tied ones.
REPEATED = {
    "t5": {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    },
    "bart": {
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
        "lm_head.weight": "model.shared.weight",
    },
    "bert": {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    "albert": {
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    "gpt2": {"lm_head.weight": "transformer.wte.weight"},
    "mamba": {"lm_head.weight": "backbone.embeddings.weight"},
    "whisper": {"proj_out.weight": "model.decoder.embed_tokens.weight"},
}


@pytest.mark.parametrize("repeating", ["target", "ft", "base"])
@pytest.mark.parametrize("architecture", REPEATED)
def test_repeated_in_one_version_only(tmp_path: Path, architecture: str, repeating: str) -> None:
    names = REPEATED[architecture]
    save_lineage(ARCHITECTURES[architecture].build, tmp_path, Storage("bfloat16", False))

    def repeat(tensors: Tensors) -> None:
        assert not set(names) & set(tensors)
        for name, other in names.items():
            tensors[name] = tensors[other].clone()

    rewrite(tmp_path / repeating, repeat)
    result = merge(tmp_path, scaling=0.7)
    assert not result.warnings
    base, ft, target = (stored(tmp_path / role) for role in ("base", "ft", "target"))
    if repeating == "target":
        repeat(base)
        repeat(ft)
    check_output(tmp_path, expected(target, [(base, ft, lambda name: 0.7)]), architecture)
    output = stored(tmp_path / "out")
    if repeating == "target":
        assert all(torch.equal(output[name], output[other]) for name, other in names.items())
    else:
        assert not set(names) & set(output)


def test_a_head_that_becomes_its_own_is_not_tied_again(tmp_path: Path) -> None:
    """All three tied, the head stored twice, and a mask that treats it unlike the embedding."""
    save(tmp_path, base=True, ft=True, target=True)
    for role in ("base", "ft", "target"):
        rewrite(tmp_path / role, repeat_embedding)
    result = merge(tmp_path, scaling=0.7, masks=[{"match": "lm_head.*", "scale": 0.0}])
    note(result, "tie_word_embeddings → false")
    saved = stored(result.output)
    model = load(ARCHITECTURES["llama"], result.output)
    assert torch.equal(model.lm_head.weight, saved[HEAD])
    assert torch.equal(model.model.embed_tokens.weight, saved[EMBEDDING])
    assert not torch.equal(saved[HEAD], saved[EMBEDDING])


def test_a_copied_head_is_not_tied_again(tmp_path: Path) -> None:
    save(tmp_path, base=True, ft=False, target=True)
    result = merge(tmp_path, scaling=0.7, on_extra="copy")
    note(result, "tie_word_embeddings → false")
    assert any("output.config: source_ft" in warning for warning in result.warnings)
    model = load(ARCHITECTURES["llama"], result.output)
    assert torch.equal(model.lm_head.weight, stored(tmp_path / "ft")[HEAD])


def test_a_tie_that_holds_is_left_alone(tmp_path: Path) -> None:
    save(tmp_path, base=True, ft=True, target=True)
    for role in ("base", "ft", "target"):
        rewrite(tmp_path / role, repeat_embedding)
    result = merge(tmp_path, scaling=0.7)
    assert json.loads((result.output / "config.json").read_text())["tie_word_embeddings"] is True
