"""Versions that do not fit: every misfit in one error, and what a plan may say about each."""

from pathlib import Path

import pytest
import torch
from exact import Tensors, expected, stored
from models import agreed, check_output, edit_json, merge, rewrite, save_llama
from tiny_architectures import ARCHITECTURES

from mergeengine.errors import CheckpointError

PROJECTIONS = ("k_proj", "o_proj", "q_proj", "v_proj")
BIASES = [f"model.layers.{n}.self_attn.{p}.bias" for n in (0, 1) for p in PROJECTIONS]
SHORTENED = "model.layers.1.mlp.up_proj.weight"
BIASED = {"attention_bias": True}
GATES = [f"model.layers.{n}.self_attn.{p}.gate" for n in (0, 1) for p in PROJECTIONS]


def add_gates(folder: Path, *roles: str) -> None:
    """Tensors that no other version has."""
    gates = {name: torch.randn(48).to(torch.bfloat16) for name in GATES}
    for role in roles:
        rewrite(folder / role, lambda tensors: tensors.update(gates))


def save(folder: Path, **changes: dict) -> None:
    """The three versions; ``changes`` are to the config of each."""
    for number, role in enumerate(("base", "ft", "target")):
        save_llama(folder / role, number, **changes.get(role, {}))


def shorten(folder: Path) -> None:
    """A model with one tensor of another shape."""
    rewrite(folder, lambda tensors: tensors.update({SHORTENED: tensors[SHORTENED][:72].clone()}))


def refused(folder: Path, **keys: str) -> str:
    with pytest.raises(CheckpointError) as raised:
        merge(folder, **keys)
    assert not (folder / "out").exists()
    return str(raised.value)


def listed(message: str, sentence: str) -> list[str]:
    """The tensors under a sentence of the error, with the number that it promises."""
    lines = message.splitlines()
    (start,) = [number for number, line in enumerate(lines) if sentence in line]
    names = []
    for line in lines[start + 1 :]:
        if not line.startswith("    "):
            break
        names.append(line.strip())
    assert lines[start].split()[0] == str(len(names))
    return sorted(names)


def tensors_of(folder: Path) -> tuple[Tensors, Tensors, Tensors]:
    base, ft, target = (stored(folder / role) for role in ("base", "ft", "target"))
    return base, ft, target


def check_tensors(folder: Path, target: Tensors, base: Tensors, ft: Tensors) -> None:
    """Of a model with tensors that no class of transformers knows."""
    agreed(stored(folder / "out"), expected(target, [(base, ft, lambda name: 0.7)]))


def check(folder: Path, target: Tensors, base: Tensors, ft: Tensors) -> None:
    check_output(folder, expected(target, [(base, ft, lambda name: 0.7)]))


def test_missing_in_both(tmp_path: Path) -> None:
    save(tmp_path)
    add_gates(tmp_path, "target")
    message = refused(tmp_path)
    assert listed(message, "missing in source_base (./base)") == GATES
    assert "`on_missing: keep_target`" in message
    assert "on_extra" not in message
    assert "on_mismatch" not in message
    result = merge(tmp_path, scaling=0.7, on_missing="keep_target")
    assert result.report["tensors"]["missing"] == len(GATES)
    base, ft, target = tensors_of(tmp_path)
    check_tensors(tmp_path, target, base, ft)


@pytest.mark.parametrize("having", ["base", "ft"])
def test_missing_in_one(tmp_path: Path, having: str) -> None:
    save(tmp_path)
    add_gates(tmp_path, "target", having)
    lacking = {"base": "source_ft (./ft)", "ft": "source_base (./base)"}[having]
    assert listed(refused(tmp_path), f"missing in {lacking}") == GATES
    merge(tmp_path, scaling=0.7, on_missing="keep_target")
    base, ft, target = tensors_of(tmp_path)
    for tensors in (base, ft):
        for name in GATES:
            tensors.pop(name, None)
    check_tensors(tmp_path, target, base, ft)


@pytest.mark.parametrize("having", [(), ("base",), ("ft",), ("base", "ft")])
def test_a_bias_that_is_not_there_is_zero(tmp_path: Path, having: tuple[str, ...]) -> None:
    save(tmp_path, **dict.fromkeys(("target", *having), BIASED))
    result = merge(tmp_path, scaling=0.7)
    base, ft, target = tensors_of(tmp_path)
    zeros = {name: torch.zeros_like(target[name]) for name in BIASES}
    check(tmp_path, target, zeros | base, zeros | ft)
    for role in ("base", "ft"):
        told = [note for note in result.notes if f"biases are not in ./{role}, where" in note]
        assert len(told) == (role not in having)


def test_extra(tmp_path: Path) -> None:
    save(tmp_path, ft=BIASED)
    message = refused(tmp_path)
    assert listed(message, "source_ft (./ft) do not exist in the target") == BIASES
    assert "`on_extra: ignore`" in message
    assert "`on_extra: copy`" in message


def test_extra_ignored(tmp_path: Path) -> None:
    save(tmp_path, ft=BIASED)
    result = merge(tmp_path, scaling=0.7, on_extra="ignore")
    assert len([note for note in result.notes if all(name in note for name in BIASES)]) == 1
    base, ft, target = tensors_of(tmp_path)
    check(tmp_path, target, base, ft)


def test_extra_copied(tmp_path: Path) -> None:
    save(tmp_path, ft=BIASED)
    result = merge(tmp_path, scaling=0.7, on_extra="copy", output={"config": "source_ft"})
    assert result.report["tensors"]["copied"] == len(BIASES)
    base, ft, target = tensors_of(tmp_path)
    extra = {name: ft[name] for name in BIASES}
    base |= extra  # no delta of their own: ft - base is zero
    check(tmp_path, target | extra, base, ft)


def test_another_shape(tmp_path: Path) -> None:
    save(tmp_path)
    shorten(tmp_path / "ft")
    message = refused(tmp_path)
    lines = listed(message, "another shape or kind in source_ft (./ft)")
    assert lines == [f"{SHORTENED}: bfloat16 [80, 48] in the target, bfloat16 [72, 48] there"]
    assert "`on_mismatch: keep_target`" in message
    result = merge(tmp_path, scaling=0.7, on_mismatch="keep_target")
    assert result.report["tensors"]["mismatch"] == 1
    base, ft, target = tensors_of(tmp_path)
    del base[SHORTENED], ft[SHORTENED]
    check(tmp_path, target, base, ft)


def test_a_float_that_is_an_integer_elsewhere(tmp_path: Path) -> None:
    save(tmp_path)
    name = "model.layers.1.self_attn.q_proj.weight"
    rewrite(tmp_path / "ft", lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    lines = listed(refused(tmp_path), "another shape or kind in source_ft (./ft)")
    assert lines == [f"{name}: bfloat16 [48, 48] in the target, int8 [48, 48] there"]


def test_all_at_once(tmp_path: Path) -> None:
    mlp = {"mlp_bias": True}
    save(tmp_path, ft=mlp)
    shorten(tmp_path / "base")
    add_gates(tmp_path, "target")
    message = refused(tmp_path)
    extra = [f"model.layers.{n}.mlp.{p}_proj.bias" for n in (0, 1) for p in ("down", "gate", "up")]
    assert listed(message, "missing in source_base") == GATES
    assert listed(message, "do not exist in the target") == extra
    assert [line.split(":")[0] for line in listed(message, "another shape")] == [SHORTENED]
    for way_out in ("on_missing: keep_target", "on_extra: ignore", "on_mismatch: keep_target"):
        assert way_out in message
    # Each option answers its own part and leaves the others.
    message = refused(tmp_path, on_missing="keep_target")
    assert "missing in" not in message
    assert len(listed(message, "do not exist in the target")) == len(extra)
    message = refused(tmp_path, on_missing="keep_target", on_extra="ignore")
    assert [line.split(":")[0] for line in listed(message, "another shape")] == [SHORTENED]
    merge(
        tmp_path,
        scaling=0.7,
        on_missing="keep_target",
        on_extra="ignore",
        on_mismatch="keep_target",
    )
    base, ft, target = tensors_of(tmp_path)
    del base[SHORTENED], ft[SHORTENED]
    check_tensors(tmp_path, target, base, ft)


def test_a_frozen_misfit_needs_no_option(tmp_path: Path) -> None:
    save(tmp_path)
    add_gates(tmp_path, "target")
    merge(tmp_path, scaling=0.7, masks=[{"match": "*.self_attn.*.gate", "scale": 0}])
    base, ft, target = tensors_of(tmp_path)
    check_tensors(tmp_path, target, base, ft)


@pytest.mark.parametrize("role", ["base", "ft"])
def test_another_architecture(tmp_path: Path, role: str) -> None:
    save(tmp_path)
    other = ARCHITECTURES["qwen2"].build(num_hidden_layers=2)
    other.save_pretrained(tmp_path / role)
    message = refused(tmp_path, on_missing="keep_target", on_extra="ignore")
    assert "not versions of one architecture" in message
    assert f"model_type: ./target 'llama', ./{role} 'qwen2'" in message


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"hidden_size": 64}, "hidden_size: ./target 48, ./base 64, ./ft 64"),
        ({"num_hidden_layers": 1}, "num_hidden_layers: ./target 2, ./base 1, ./ft 1"),
        ({"intermediate_size": 96}, "intermediate_size: ./target 80, ./base 96, ./ft 96"),
        ({"num_key_value_heads": 4}, "num_key_value_heads: ./target 2, ./base 4, ./ft 4"),
    ],
)
def test_another_size(tmp_path: Path, changes: dict[str, int], key: str) -> None:
    for number, role in enumerate(("base", "ft", "target")):
        torch.manual_seed(number)
        size = {} if role == "target" else changes
        settings = {"num_hidden_layers": 2, **size}
        ARCHITECTURES["llama"].build(**settings).save_pretrained(tmp_path / role)
    message = refused(tmp_path, on_mismatch="keep_target", on_missing="keep_target")
    assert key in message


@pytest.mark.parametrize("role", ["base", "ft", "target"])
def test_quantised_weights_are_refused(tmp_path: Path, role: str) -> None:
    save(tmp_path)
    quantisation = {"quant_method": "gptq", "bits": 4}
    edit_json(
        tmp_path / role / "config.json",
        lambda config: config.update(quantization_config=quantisation),
    )
    message = refused(tmp_path)
    assert message.startswith(f"./{role}: ")
    assert "quantised" in message
    assert "gptq" in message
    assert "unquantised" in message
