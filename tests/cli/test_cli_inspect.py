import json

import pytest
import torch
from safetensors.torch import load_file, save_file

TEXT = """\
model         ./target
architecture  LlamaForCausalLM (llama)
parameters    156 (156)
tensors       9, 320 B
              bfloat16: 8, 312 B
              int64: 1, 8 B
weights       model.safetensors  SIZE
other files   config.json
"""


@pytest.mark.parametrize("reference", ["target", "./target"])
def test_text(here, command, reference):
    ended = command("inspect", reference)
    size = (here / "target/model.safetensors").stat().st_size
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == TEXT.replace("SIZE", f"{size / 1000:.3g} KB" if size > 999 else f"{size} B")


def test_every_tensor(here, command):
    out = command("inspect", "target", "--tensors").out
    assert "model.layers.2.self_attn.q_proj.weight  bfloat16  [4, 4]\n" in out
    assert "model.steps                             int64     [1]\n" in out


def test_json(here, command):
    document = command("inspect", "target", "--format", "json").json
    assert set(document) == {
        "reference", "revision", "architectures", "model_type", "parameters", "bytes",
        "tensor_count", "dtypes", "files", "companions", "warnings",
        "adapter", "adapts", "quantised",
    }  # fmt: skip
    assert document["files"][0]["name"] == "model.safetensors"
    listed = command("inspect", "target", "--tensors", "--format", "json").json["tensors"]
    assert len(listed) == document["tensor_count"] == 9
    assert set(listed[0]) == {"name", "dtype", "shape", "bytes", "file"}


ADAPTER = """\
model       ./lora
adapter     DoRA, rank 4, alpha 8 of org/model
parameters  32 (32)
tensors     2, 128 B
            float32: 2, 128 B
weights     adapter_model.safetensors  SIZE
other files adapter_config.json
"""


def make_adapter(folder, **config):
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    module = "base_model.model.model.layers.1.self_attn.q_proj"
    factors = {
        f"{module}.lora_A.weight": torch.ones(4, 4),
        f"{module}.lora_B.weight": torch.ones(4, 4),
    }
    save_file(factors, folder / "adapter_model.safetensors")


def test_an_adapter(here, command):
    make_adapter(here / "lora", use_dora=True, base_model_name_or_path="org/model")
    ended = command("inspect", "lora")
    assert (ended.code, ended.err) == (0, "")
    size = (here / "lora/adapter_model.safetensors").stat().st_size
    assert [line.split() for line in ended.out.splitlines()] == [
        line.split() for line in ADAPTER.replace("SIZE", f"{size} B").splitlines()
    ]
    document = command("inspect", "lora", "--format", "json").json
    assert (document["adapter"], document["adapts"]) == ("DoRA, rank 4, alpha 8", "org/model")


def test_an_adapter_that_is_not_read(here, command):
    make_adapter(here / "lora", peft_type="IA3")
    ended = command("inspect", "lora")
    assert ended.code == 3
    assert "LORA alone is read" in ended.err


def test_weights_in_8_bits(here, command):
    tensors = load_file(here / "target/model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    tensors[f"{name}_scale_inv"] = torch.ones(2, 1)
    save_file(tensors, here / "target/model.safetensors")
    config = json.loads((here / "target/config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [2, 4]}
    (here / "target/config.json").write_text(json.dumps(config))
    told = "1 weights in float8_e4m3fn, with a scale for each 2 × 4 elements"
    ended = command("inspect", "target")
    assert f"quantised     {told}\n" in ended.out
    assert ended.err == ""


def test_a_single_file(here, command):
    ended = command("inspect", "target/model.safetensors")
    assert ended.code == 0
    assert "architecture" not in ended.out


def test_a_config_that_contradicts_its_tensors(here, command):
    config = json.loads((here / "target/config.json").read_text())
    (here / "target/config.json").write_text(json.dumps({**config, "vocab_size": 9}))
    assert "warning: config.json says vocab_size 9" in command("inspect", "target").err


@pytest.mark.parametrize(
    ("reference", "code", "text"),
    [
        ("./nowhere", 3, "there is no folder or file"),
        ("nowhere", 3, "local cache"),
        (".", 3, "has no weights"),
        ("a b", 3, "is not a model reference"),
        ("C:\\models", 3, "a local path begins with"),
        ("plan.yaml", 3, "expected a file of weights"),
    ],
)
def test_what_is_no_model(here, command, reference, code, text):
    ended = command("inspect", reference, "--offline")
    assert (ended.code, ended.out) == (code, "")
    assert text in ended.err


def test_kinds(here, command):
    out = command("inspect", "target", "--kinds").out
    assert (
        "mlp           3 tensors, 72 parameters, as model.layers.0.mlp.up_proj.weight\n"
        "norm          1 tensors, 4 parameters, as model.norm.weight\n"
        "embedding     1 tensors, 32 parameters, as model.embed_tokens.weight\n"
    ) in out
    assert "q_proj        3 tensors, 48 parameters, as model.layers.0.self_attn" in out
    listed = command("inspect", "target", "--kinds", "--format", "json").json["kinds"]
    assert [each["kind"] for each in listed if each["role"]] == [
        "attention", "mlp", "norm", "embedding",
    ]  # fmt: skip
