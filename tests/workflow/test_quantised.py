"""Checkpoints in 8-bit floats with scales, against what torch computes in float64."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import mergeengine
from mergeengine import CheckpointError
from mergeengine.checkpoints.quantised import dequantised, quantised
from mergeengine.lazy.dtypes import BY_NAME
from mergeengine.lazy.stored import Stored, StoredFile

BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
SMALL_BLOCKS = {"quant_method": "fp8", "weight_block_size": [4, 8]}
TENSOR = {"quant_method": "fp8", "activation_scheme": "static"}


def compressed(strategy: str) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
    }


def spread(scale: Tensor, shape: tuple[int, ...], block: tuple[int, int] | None) -> Tensor:
    scale = scale.double()
    if scale.numel() == 1:
        return scale.reshape(()).expand(shape)
    if block is None:
        return scale.reshape(-1, 1).expand(shape)
    full = scale.repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)
    return full[..., : shape[-2], : shape[-1]]


def value(stored: Tensor, scale: Tensor, block: tuple[int, int] | None = None) -> Tensor:
    return stored.double() * spread(scale, tuple(stored.shape), block)


def write(folder: Path, tensors: Mapping[str, Tensor], quantisation: Any = None) -> None:
    folder.mkdir(exist_ok=True)
    config: dict[str, Any] = {"model_type": "toy", "torch_dtype": "bfloat16"}
    if quantisation:
        config["quantization_config"] = quantisation
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def eight(*shape: int, dtype: torch.dtype = torch.float8_e4m3fn) -> Tensor:
    return (torch.randn(shape) * 30).to(dtype)


def scales(*shape: int) -> Tensor:
    return torch.rand(shape) * 0.01 + 0.001


def run(folder: Path, output: str = "", **settings: Any) -> mergeengine.RunResult:
    plan = folder / "plan.yaml"
    plan.write_text(
        "version: 1\ntarget: ./target\nsource_base: ./base\nsource_ft: ./ft\nscaling: 0.75\n"
        f"output: {{path: ./out{output}}}\n"
    )
    return mergeengine.run(plan, **settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    return tmp_path


FORMATS: dict[str, tuple[Any, str, tuple[int, ...], tuple[int, int] | None]] = {
    "blocks with edges": (BLOCKS, "weight_scale_inv", (3, 2), (128, 128)),
    "a tensor": (TENSOR, "weight_scale", (), None),
    "a tensor, one number": (compressed("tensor"), "weight_scale", (1,), None),
    "channels": (compressed("channel"), "weight_scale", (300, 1), None),
    "channels, flat": ({"quant_method": "fbgemm_fp8"}, "weight_scale", (300,), None),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, "weight_scale", (), None),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_weights_are_what_is_stored_times_its_scale(
    name: str, stored: torch.dtype, folder: Path
) -> None:
    quantisation, ending, shape, block = FORMATS[name]
    values = {}
    for model in ("target", "base", "ft"):
        tensors = {"x.weight": eight(300, 200, dtype=stored), f"x.{ending}": scales(*shape)}
        tensors["norm.weight"] = torch.randn(200).to(torch.bfloat16)
        write(folder / model, tensors, quantisation)
        values[model] = value(tensors["x.weight"], tensors[f"x.{ending}"], block)
    run(folder, ", dtype: float64")
    out = load_file(folder / "out" / "model.safetensors")
    assert out.keys() == {"x.weight", "norm.weight"}
    wanted = values["target"] + 0.75 * (values["ft"] - values["base"])
    torch.testing.assert_close(out["x.weight"], wanted, rtol=1e-14, atol=1e-14)
    config = json.loads((folder / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["torch_dtype"] == "float64"


def test_the_values_are_written_in_the_dtype_of_the_config(folder: Path) -> None:
    """A model in 8 bits beside models that are not."""
    for model in ("target", "base", "ft"):
        write(folder / model, {"x.weight": torch.randn(10, 20).to(torch.bfloat16)})
    stored, scale = eight(10, 20), scales(3, 3)
    write(folder / "target", {"x.weight": stored, "x.weight_scale_inv": scale}, SMALL_BLOCKS)
    result = run(folder)
    out = load_file(folder / "out" / "model.safetensors")["x.weight"]
    base, ft = (load_file(folder / m / "model.safetensors")["x.weight"] for m in ("base", "ft"))
    products = stored.float() * spread(scale, (10, 20), (4, 8)).float()
    assert torch.equal(out, (products + 0.75 * (ft.float() - base.float())).to(torch.bfloat16))
    assert any("quantization_config is left out" in note for note in result.notes)


def test_stacks_of_experts_have_blocks_of_their_own(folder: Path) -> None:
    values = {}
    for model in ("target", "base", "ft"):
        tensors = {"e.down_proj": eight(3, 10, 20), "e.down_proj_scale_inv": scales(3, 3, 3)}
        write(folder / model, tensors, SMALL_BLOCKS)
        values[model] = value(tensors["e.down_proj"], tensors["e.down_proj_scale_inv"], (4, 8))
    run(folder, ", dtype: float64")
    out = load_file(folder / "out" / "model.safetensors")["e.down_proj"]
    wanted = values["target"] + 0.75 * (values["ft"] - values["base"])
    torch.testing.assert_close(out, wanted, rtol=1e-14, atol=1e-14)


def test_scales_of_activations_are_left_out_and_told(folder: Path) -> None:
    for model in ("target", "base", "ft"):
        tensors = {"x.weight": eight(4, 6), "x.weight_scale": scales(), "x.input_scale": scales(1)}
        write(folder / model, tensors, TENSOR)
    result = run(folder)
    assert load_file(folder / "out" / "model.safetensors").keys() == {"x.weight"}
    assert any("1 scales of activations are left out: 'x.input_scale'" in n for n in result.notes)


BAD: dict[str, tuple[dict[str, Tensor], Any, str]] = {
    "no scale": ({"x.weight": eight(4, 6)}, TENSOR, "without x.weight_scale"),
    "no weight": (
        {"x.weight": torch.ones(4, 6), "x.weight_scale": scales()},
        TENSOR,
        "x.weight_scale: there is no weight in 8-bit floats",
    ),
    "another block": (
        {"x.weight": eight(10, 20), "x.weight_scale_inv": scales(2, 2)},
        SMALL_BLOCKS,
        "x.weight: the scale of [10, 20] in blocks of [4, 8] is float32 [2, 2]",
    ),
    "blocks of no size": (
        {"x.weight": eight(10, 20), "x.weight_scale_inv": scales(2, 2)},
        {"quant_method": "fp8", "weight_block_size": [0, 8]},
        "in rows or the whole tensor is float32 [2, 2]",
    ),
    "whole numbers": (
        {"x.weight": eight(4, 6), "x.weight_scale": torch.ones(1, dtype=torch.int32)},
        TENSOR,
        "is int32 [1]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_the_config_does_not_describe_is_refused(name: str, folder: Path) -> None:
    tensors, quantisation, message = BAD[name]
    for model in ("base", "ft"):
        write(folder / model, {"x.weight": torch.ones(4, 6)})
    write(folder / "target", tensors, quantisation)
    with pytest.raises(CheckpointError) as caught:
        run(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("quantisation", "way_out"),
    [
        ({"quant_method": "gptq", "bits": 4}, "dequantise it first"),
        ({"quant_method": "awq"}, "scaled its channels"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "for QLoRA"),
        ({"quant_method": "gguf"}, "use the safetensors checkpoint"),
        ({"quant_method": "mxfp4"}, "Mxfp4Config(dequantize=True)"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "FP8 alone is read"),
        ({"quant_method": "hqq"}, "unquantised checkpoint"),
        ({"quant_method": "aqlm"}, "codebooks cannot be added"),
        ({"quant_method": "torchao"}, "what torchao dequantises"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"type": "int", "num_bits": 4}}},
            },
            "floats of 8 bits alone",
        ),
        ({"quant_method": "something"}, "dequantise it first"),
        ("strange", "quantised ('strange')"),
    ],
    ids=str,
)
def test_other_formats_are_refused_with_what_to_do(
    quantisation: Any, way_out: str, folder: Path
) -> None:
    for model in ("target", "base", "ft"):
        write(folder / model, {"x.weight": torch.ones(4, 6)}, quantisation)
    with pytest.raises(CheckpointError) as caught:
        run(folder)
    assert way_out in str(caught.value)


def test_the_same_bytes_for_any_workers(folder: Path) -> None:
    for model in ("target", "base", "ft"):
        tensors = {"x.weight": eight(3000, 1000), "x.weight_scale_inv": scales(24, 8)}
        write(folder / model, tensors, BLOCKS)
    results = []
    for workers in (1, 3):
        run(folder, workers=workers, force=True)
        results.append((folder / "out" / "model.safetensors").read_bytes())
    assert results[0] == results[1]


# --- written in 8 bits again ----------------------------------------------------------------


def again(values: Tensor, block: tuple[int, int] | None, ending: Tensor) -> tuple[Tensor, Tensor]:
    """What is to be stored, and its scales, of a weight in the float32 of the arithmetic."""
    if ending.numel() == 1:
        most = values.abs().max().reshape(ending.shape)
    elif block is None:
        most = values.abs().amax(1, keepdim=True)
    else:
        most = torch.zeros(ending.shape)
        for row in range(most.shape[-2]):
            for column in range(most.shape[-1]):
                part = values[
                    ...,
                    row * block[0] : (row + 1) * block[0],
                    column * block[1] : (column + 1) * block[1],
                ]
                most[..., row, column] = part.abs().amax((-2, -1))
    scale = most / 448
    scale = torch.where(scale > 0, scale, 1.0)
    spread_scale = spread(scale, tuple(values.shape), block).float()
    return (values / spread_scale).clamp(-448, 448).to(torch.float8_e4m3fn), scale


KEPT: dict[str, tuple[Any, str, tuple[int, ...], tuple[int, ...], tuple[int, int] | None]] = {
    "blocks": (BLOCKS, "weight_scale_inv", (300, 200), (3, 2), (128, 128)),
    "more than a chunk": (BLOCKS, "weight_scale_inv", (1500, 1000), (12, 8), (128, 128)),
    "long rows": (BLOCKS, "weight_scale_inv", (3, 700_001), (1, 5469), (128, 128)),
    "a stack": (SMALL_BLOCKS, "weight_scale_inv", (3, 10, 20), (3, 3, 3), (4, 8)),
    "a tensor": (TENSOR, "weight_scale", (30, 20), (), None),
    "a tensor, one number": (compressed("tensor"), "weight_scale", (30, 20), (1,), None),
    "channels": (compressed("channel"), "weight_scale", (30, 20), (30, 1), None),
}


@pytest.mark.parametrize("name", KEPT)
def test_weights_are_written_in_8_bits_again(name: str, folder: Path) -> None:
    quantisation, ending, shape, counts, block = KEPT[name]
    values, ending = {}, f"x.{ending}"
    for model in ("target", "base", "ft"):
        tensors = {"x.weight": eight(*shape), ending: scales(*counts)}
        tensors["norm.weight"] = torch.randn(20).to(torch.bfloat16)
        if model == "target":  # a block of zeros stays one, wherever there is no delta
            tensors["x.weight"].view(torch.uint8)[..., :4, :8] = 0
        else:
            tensors["x.weight"].view(torch.uint8)[..., :4, :8] = 0x20
            tensors[ending] = torch.full(counts, 0.01)
        write(folder / model, tensors, quantisation)
        full = spread(tensors[ending], shape, block).float()
        values[model] = tensors["x.weight"].float() * full
    run(folder, ", quantization: keep")
    out = load_file(folder / "out" / "model.safetensors")
    assert out.keys() == {"x.weight", ending, "norm.weight"}
    merged = values["target"] + 0.75 * (values["ft"] - values["base"])
    stored, scale = again(merged, block, out[ending])
    assert torch.equal(out[ending], scale)
    assert torch.equal(out["x.weight"].view(torch.uint8), stored.view(torch.uint8))
    config = json.loads((folder / "out" / "config.json").read_text())
    assert config["quantization_config"] == quantisation
    assert mergeengine.verify(folder / "out") == []
    again_made = run(folder, ", quantization: keep")
    assert not again_made.made


def test_what_has_no_delta_is_copied(folder: Path) -> None:
    for model in ("target", "base", "ft"):
        tensors = {"x.weight": eight(10, 20), "x.weight_scale_inv": scales(3, 3)}
        write(folder / model, tensors, SMALL_BLOCKS)
    run(folder, ", quantization: keep}\nmasks: [{scale: 0}]\nnumerics: {compute_dtype: auto")
    out = load_file(folder / "out" / "model.safetensors")
    target = load_file(folder / "target" / "model.safetensors")
    for name, tensor in target.items():
        assert torch.equal(out[name].view(torch.uint8), tensor.view(torch.uint8))


def test_8_bits_again_give_the_same_bytes_for_any_workers(folder: Path) -> None:
    for model in ("target", "base", "ft"):
        tensors = {"x.weight": eight(3000, 1000), "x.weight_scale_inv": scales(24, 8)}
        write(folder / model, tensors, BLOCKS)
    results = []
    for workers in (1, 3):
        run(folder, ", quantization: keep", workers=workers, force=True)
        results.append((folder / "out" / "model.safetensors").read_bytes())
    assert results[0] == results[1]


def test_keeping_needs_a_target_whose_scales_can_be_found_again(folder: Path) -> None:
    for model in ("target", "base", "ft"):
        write(folder / model, {"x.weight": torch.ones(4, 6)})
    with pytest.raises(CheckpointError, match="has no weights in 8-bit floats with scales"):
        run(folder, ", quantization: keep")
    static = {"x.weight": eight(4, 6), "x.weight_scale": scales(), "x.input_scale": scales()}
    write(folder / "target", static, TENSOR)
    with pytest.raises(CheckpointError, match="has scales of activations"):
        run(folder, ", quantization: keep")
    tensors = {"x.weight": eight(4, 6), "x.weight_scale_inv": scales(1, 1)}
    write(folder / "target", tensors, {**BLOCKS, "scale_fmt": "ue8m0"})
    with pytest.raises(CheckpointError, match="has scales of the format 'ue8m0'"):
        run(folder, ", quantization: keep")


@pytest.mark.parametrize("beside", ["dtype: bfloat16", "config: source_ft"])
def test_keeping_is_the_targets_format(beside: str, folder: Path) -> None:
    with pytest.raises(mergeengine.PlanError, match="cannot stand beside it"):
        run(folder, f", quantization: keep, {beside}")


def test_memory_is_what_was_projected(folder: Path) -> None:
    for model in ("target", "base", "ft"):
        tensors = {"x.weight": eight(4000, 3000), "x.weight_scale_inv": scales(32, 24)}
        write(folder / model, tensors, BLOCKS)
    memory = run(folder, ", quantization: keep", workers=2).report["memory"]
    assert memory["measured_bytes"] <= memory["projected_bytes"] < 3 * 4000 * 3000 * 4


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
WEIGHTS = st.fixed_dictionaries(
    {"type": st.just("float") | JSON, "num_bits": st.just(8) | JSON},
    optional={"block_structure": JSON, "symmetric": JSON},
)
ANYTHING = JSON | st.fixed_dictionaries(
    {"quant_method": st.sampled_from(["fp8", "compressed-tensors", "modelopt"]) | JSON},
    optional={
        "weight_block_size": JSON | st.lists(st.integers(-1, 300), max_size=3),
        "config_groups": JSON | st.dictionaries(st.text(max_size=3), JSON | WEIGHTS, max_size=2),
        "quant_algo": st.just("FP8") | JSON,
    },
)


@given(ANYTHING, st.lists(st.integers(0, 3), max_size=3))
def test_a_config_of_anything_is_understood_or_refused(found: Any, counts: list[int]) -> None:
    file = StoredFile(Path("x"), 0)
    tensors = {
        "x": Stored("m", "x", BY_NAME["float8_e4m3fn"], (5, 7), file, 0),
        "x_scale": Stored("m", "x_scale", BY_NAME["float32"], tuple(counts), file, 0),
    }
    config = {"quantization_config": found}
    if quantised(config) is not None:
        return
    try:
        weights, _ = dequantised("m", config, tensors)
    except CheckpointError:
        return
    assert weights["x"].shape == (5, 7)
