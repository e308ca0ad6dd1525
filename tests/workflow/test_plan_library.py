"""Each plan of ``plans/`` is run, on tiny models of the structure of those that it names."""

from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

import mergeengine
from mergeengine.chain.recognition import is_chain
from mergeengine.plan import load_plan
from mergeengine.values.anatomy import lone

PLANS = Path(__file__).parents[2] / "plans"
NAMES = sorted(path.name for path in PLANS.glob("*.yaml") if not is_chain(path))
SIZES = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 500000.0,
}  # fmt: skip


def make(folder: Path, reference: str) -> None:
    """A tiny model of the kind that a reference names."""
    torch.manual_seed(sum(map(ord, reference)))
    sizes = {**SIZES, "vocab_size": 56} if "Tulu" in reference else SIZES
    config: transformers.PretrainedConfig
    if "OLMo" in reference:
        config = transformers.Olmo2Config(**sizes)
        model: transformers.PreTrainedModel = transformers.Olmo2ForCausalLM(config)
    else:
        newer = {"rope_parameters": ROPE} if "3.1" in reference else {}
        config = transformers.LlamaConfig(**sizes, **newer)
        model = transformers.LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")


def redirected(name: str, folder: Path) -> Path:
    """The plan, written out, with every model a tiny one in `folder`."""
    plan = load_plan(PLANS / name)
    document = plan.document
    places: dict[str, str] = {}

    def local(reference: str) -> str:
        if reference not in places:
            places[reference] = f"./model{len(places)}"
            make(folder / places[reference], reference)
        return places[reference]

    for part in (document, *document.get("sources", [])):
        for key in ("base", "target", "source_base", "source_ft"):
            if key in part:
                part[key] = local(part[key])
    document["output"]["path"] = "./out"
    document["name"] = plan.name
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_every_plan_runs(name: str, tmp_path: Path) -> None:
    file = redirected(name, tmp_path)
    result = mergeengine.run(file)
    assert result.made
    assert mergeengine.verify(result.output) == []
    plan = load_plan(file)
    assert plan.target.path is not None
    merged = load_file(result.output / "model.safetensors")
    target = load_file(plan.target.path / "model.safetensors")
    assert merged.keys() == target.keys()
    for tensor, value in merged.items():
        expected = target[tensor].float()
        for source in plan.sources:
            assert source.source_base.path is not None
            assert source.source_ft.path is not None
            old = load_file(source.source_base.path / "model.safetensors")[tensor]
            new = load_file(source.source_ft.path / "model.safetensors")[tensor]
            scaling = source.scaling.at(lone(tensor)).value
            rows = min(map(len, (old, new, expected)))  # tokens are matched by index
            expected[:rows] += scaling * (new[:rows].float() - old[:rows].float())
        torch.testing.assert_close(value.float(), expected, rtol=1e-2, atol=1e-5)
    transformers.AutoModelForCausalLM.from_pretrained(result.output)


def test_every_plan_says_what_it_is() -> None:
    assert len(NAMES) >= 9
    for name in NAMES:
        text = (PLANS / name).read_text()
        assert text.startswith("# "), name
        assert load_plan(PLANS / name).warnings == ()
