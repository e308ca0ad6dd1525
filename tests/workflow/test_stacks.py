"""Layers of models on top of each other: the tensors, the config, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergeengine.cli import call
from mergeengine.errors import CheckpointError
from mergeengine.output.lock import read_lock
from mergeengine.plan import parse_plan
from mergeengine.workflow.run import run

INSIDE = {"mlp.up_proj.weight": (6, 4), "input_layernorm.weight": (4,)}
OUTSIDE = {"model.embed_tokens.weight": (8, 4), "model.norm.weight": (4,), "lm_head.weight": (8, 4)}


def write_model(folder: Path, layers: int, seed: int, **config) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = dict(OUTSIDE)
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in INSIDE.items()}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    said = {"model_type": "llama", "num_hidden_layers": layers, "hidden_size": 4, "vocab_size": 8}
    (folder / "config.json").write_text(json.dumps(said | config))
    return tensors


def stack(*parts: tuple[dict[str, torch.Tensor], list[int]]) -> dict[str, torch.Tensor]:
    """What a stack is to be: the plain way."""
    first, last = parts[0][0], parts[-1][0]
    made = {"model.embed_tokens.weight": first["model.embed_tokens.weight"]}
    layers = [(tensors, layer) for tensors, chosen in parts for layer in chosen]
    for place, (tensors, layer) in enumerate(layers):
        for name in INSIDE:
            made[f"model.layers.{place}.{name}"] = tensors[f"model.layers.{layer}.{name}"]
    return made | {name: last[name] for name in ("model.norm.weight", "lm_head.weight")}


def result(text: str, folder: Path) -> dict[str, torch.Tensor]:
    (folder / "p.yaml").write_text(text)
    assert call(["run", str(folder / "p.yaml"), "--output", str(folder / "out")]) == 0
    return load_file(folder / "out" / "model.safetensors")


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


def test_layers_of_two_models(tmp_path) -> None:
    a, b = write_model(tmp_path / "a", 4, 1), write_model(tmp_path / "b", 5, 2)
    text = """version: 1
method: passthrough
sources:
  - model:
      stack:
        - {model: ./a, layers: "0-2"}
        - {model: ./b, layers: ["1-2", -1]}
        - {model: ./a, layers: 2}
        - {model: ./b, layers: even}
"""
    expected = stack((a, [0, 1, 2]), (b, [1, 2, 4]), (a, [2]), (b, [0, 2, 4]))
    assert same(result(text, tmp_path), expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 10
    assert call(["lock", str(tmp_path / "p.yaml")]) == 0
    lock = read_lock(tmp_path / "p.lock")
    assert lock is not None
    assert sorted(lock.models) == ["./a", "./b"]


def test_a_delta_on_a_stack(tmp_path) -> None:
    """The target and the delta are stacked alike: a fine-tune carried to a deeper model."""
    t, b, f = (write_model(tmp_path / name, 3, seed) for seed, name in enumerate("tbf"))
    text = "version: 1\n" + "".join(
        f"{role}: {{stack: [{{model: ./{name}, layers: 0-1}}, {{model: ./{name}, layers: 1-}}]}}\n"
        for role, name in (("target", "t"), ("source_base", "b"), ("source_ft", "f"))
    )
    found = result(text + "scaling: {points: [0, 1], over: 1-2}\n", tmp_path)
    parts = ([0, 1], [1, 2])
    target, base, tuned = (stack(*((each, part) for part in parts)) for each in (t, b, f))
    for name in target:
        depth = 1.0 if name in ("model.norm.weight", "lm_head.weight") else 0.0
        if "layers" in name:
            depth = min(1.0, max(0.0, int(name.split(".")[2]) - 1.0))
        expected = target[name].double() + depth * (tuned[name].double() - base[name].double())
        assert torch.equal(found[name], expected.float()), name


def test_what_a_config_says_of_single_layers(tmp_path) -> None:
    kinds = ["full", "sliding", "full", "linear"]
    write_model(
        tmp_path / "a", 4, 1, layer_types=kinds, mlp_only_layers=[1, 3], eos_token_id=[1] * 4
    )
    write_model(tmp_path / "b", 2, 2, layer_types=["other", "full"], full_attention_interval=2)
    text = """version: 1
method: passthrough
sources: [{model: {stack: [{model: ./a, layers: "1-3"}, {model: ./b}, {model: ./a, layers: 1}]}}]
"""
    result(text, tmp_path)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["layer_types"] == ["sliding", "full", "linear", "other", "full", "sliding"]
    assert config["mlp_only_layers"] == [0, 2, 4, 5]  # of b, which says nothing, as of a
    assert config["eos_token_id"] == [1] * 4


def test_settings_that_count_layers_are_told(tmp_path, capsys) -> None:
    write_model(tmp_path / "a", 4, 1, full_attention_interval=2)
    (tmp_path / "p.yaml").write_text(
        "version: 1\nmethod: passthrough\nsources: [{model: {stack: [{model: ./a, layers: 1-}]}}]\n"
    )
    assert call(["run", str(tmp_path / "p.yaml"), "--output", str(tmp_path / "out")]) == 0
    assert "full_attention_interval" in capsys.readouterr().err


def test_an_adapter_in_a_stack_and_as_a_model(tmp_path) -> None:
    a, b = write_model(tmp_path / "a", 3, 1), write_model(tmp_path / "b", 3, 2)
    lora = tmp_path / "lora"
    lora.mkdir()
    module = "model.layers.1.mlp.up_proj"
    one, two = torch.randn(2, 4), torch.randn(6, 2)
    save_file(
        {
            f"base_model.model.{module}.lora_A.weight": one,
            f"base_model.model.{module}.lora_B.weight": two,
        },
        lora / "adapter_model.safetensors",
    )
    (lora / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]})
    )
    tuned = (a[f"{module}.weight"].double() + 2 * (two.double() @ one.double())).float()
    text = """version: 1
method: passthrough
sources:
  - model: {stack: [{model: {adapter: ./lora, base: ./a}, layers: 1-2}, {model: ./b, layers: 0}]}
"""
    found = result(text, tmp_path)
    a_tuned = a | {f"{module}.weight": tuned}
    expected = stack((a_tuned, [1, 2]), (b, [0]))
    changed = "model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(found.pop(changed), expected.pop(changed), rtol=1e-6)
    assert same(found, expected)

    text = (
        "version: 1\nmethod: linear\nsources: [{model: {adapter: ./lora, base: ./a}}, {model: ./b}]"
    )
    run(parse_plan(text, tmp_path / "q.yaml"), output=tmp_path / "whole")
    found = load_file(tmp_path / "whole" / "model.safetensors")
    for name in a_tuned:
        half = (a_tuned[name].double() + b[name].double()) / 2
        assert torch.allclose(found[name].double(), half, atol=1e-6), name
    assert (tmp_path / "whole" / "config.json").exists()


def test_the_stack_that_transformers_would_make(tmp_path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "a")
    text = """version: 1
method: passthrough
sources: [{model: {stack: [{model: ./a, layers: 0-2}, {model: ./a, layers: 1-3}]}}]
"""
    run(parse_plan(text, tmp_path / "p.yaml"), output=tmp_path / "out")
    deeper = LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.arange(7)[None]
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList([layers[i] for i in (0, 1, 2, 1, 2, 3)])
    model.config.num_hidden_layers = 6
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        assert torch.equal(deeper(tokens, use_cache=False).logits, expected)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ('"2-3"', "./a has the layers 0-2, and no 2-3"),
        ("-4", "./a has the layers 0-2, and no -4"),
        ("7", "./a has the layers 0-2, and no 7"),
    ],
)
def test_layers_that_are_not_there(tmp_path, layers: str, said: str) -> None:
    write_model(tmp_path / "a", 3, 1)
    text = (
        "version: 1\nmethod: passthrough\n"
        f"sources: [{{model: {{stack: [{{model: ./a, layers: {layers}}}]}}}}]\n"
    )
    with pytest.raises(CheckpointError, match=r"p\.yaml:3:36: .*" + said):
        run(parse_plan(text, tmp_path / "p.yaml"), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_stacks_are_refused(tmp_path) -> None:
    write_model(tmp_path / "a", 3, 1)
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    tensors["vision.blocks.0.weight"] = torch.ones(2)
    save_file(tensors, tmp_path / "a" / "model.safetensors")
    text = "version: 1\nmethod: passthrough\nsources: [{model: {stack: [{model: ./a}]}}]\n"
    with pytest.raises(CheckpointError, match="has several"):
        run(parse_plan(text, tmp_path / "p.yaml"), output=tmp_path / "out")


def test_a_stack_in_a_chain(tmp_path) -> None:
    """Its parts may be steps and names of the chain, and a step that is not written."""
    a = write_model(tmp_path / "a", 2, 1)
    b, c = write_model(tmp_path / "b", 2, 2), write_model(tmp_path / "c", 2, 3)
    (tmp_path / "chain.yaml").write_text("""version: 1
name: stacks
models: {first: ./a, other: ./b}
steps:
  - id: tuned
    keep: false
    plan: {base: other, source_ft: ./c}
  - id: deep
    plan:
      method: passthrough
      sources:
        - model: {stack: [{model: first, layers: 0-1}, {model: tuned, layers: 1}]}
    output: {path: made}
""")
    assert call(["run", str(tmp_path / "chain.yaml")]) == 0
    found = load_file(tmp_path / "made" / "model.safetensors")
    merged = {name: b[name] + (c[name] - b[name]) for name in b}
    expected = stack((a, [0, 1]), (merged, [1]))
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(found[name], expected[name], atol=1e-6), name
    assert not (tmp_path / "tuned").exists()
