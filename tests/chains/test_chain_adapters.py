"""Adapters in the plans of a chain: names stand for their bases too."""

import json
from pathlib import Path

import pytest
import torch
from chain_files import write_chain
from command_line import Command
from safetensors.torch import load_file, save_file

WEIGHT = "model.layers.0.mlp.up_proj.weight"


def write_adapter(folder: Path, seed: int) -> torch.Tensor:
    """An adapter of one matrix; what it adds."""
    generator = torch.Generator().manual_seed(seed)
    one, two = torch.randn(2, 8, generator=generator), torch.randn(16, 2, generator=generator)
    name = "base_model.model.model.layers.0.mlp.up_proj"
    folder.mkdir(exist_ok=True)
    factors = {f"{name}.lora_A.weight": one, f"{name}.lora_B.weight": two}
    save_file(factors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return two.double() @ one.double()


def weight(folder: str) -> torch.Tensor:
    return load_file(Path(folder) / "model.safetensors")[WEIGHT].double()


@pytest.mark.parametrize("keep", [True, False])
def test_the_base_of_an_adapter_is_a_step_or_a_model(here: Path, run: Command, keep: bool) -> None:
    delta = write_adapter(here / "lora", 1)
    on_model = {"adapter": "./lora", "base": "m1"}
    on_step = {"adapter": "./lora", "base": "first"}
    steps = [
        {"id": "first", "plan": {"target": "m2", "source_base": "m1", "source_ft": on_model}},
        {"id": "second", "plan": {"target": "m3", "source_base": "m1", "source_ft": on_step}},
    ]
    steps[0]["keep"] = keep
    models = {name: f"./{name}" for name in ("m1", "m2", "m3")}
    write_chain(here, {"version": 1, "models": models, "steps": steps})
    assert run().outcomes == {"first": "made", "second": "made"}
    first = (weight("m2") + delta).bfloat16().double()
    second = weight("m3") + (first + delta) - weight("m1")
    assert torch.allclose(weight("out/second"), second, rtol=2**-7, atol=2**-7)
    if keep:
        assert torch.equal(weight("out/first"), first)
    assert run().outcomes["second"] == "reused"
    write_adapter(here / "lora", 2)
    changed = run().outcomes
    assert changed == {"first": "made", "second": "made"}
