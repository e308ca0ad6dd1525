import json

import pytest
import torch
from safetensors.torch import save_file

from mergeengine.analysis.inspect import summarise
from mergeengine.checkpoints.checkpoint import open_checkpoint


@pytest.fixture
def model(tmp_path):
    tensors = {
        "a.weight": torch.zeros(3, 4, dtype=torch.bfloat16),
        "b.weight": torch.zeros(5, dtype=torch.bfloat16),
        "norm": torch.zeros(2),
        "ids": torch.zeros(7, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_counts(model):
    summary = summarise(open_checkpoint(model))
    assert (summary.tensor_count, summary.parameters, summary.bytes) == (4, 19, 98)
    assert [(s.dtype, s.tensors, s.elements, s.bytes) for s in summary.dtypes] == [
        ("int64", 1, 7, 56),
        ("bfloat16", 2, 17, 34),
        ("float32", 1, 2, 8),
    ]
    assert summary.files == (("model.safetensors", (model / "model.safetensors").stat().st_size),)


def test_without_a_config(model):
    summary = summarise(open_checkpoint(model))
    assert (summary.architectures, summary.model_type, summary.warnings) == ((), None, ())


@pytest.mark.parametrize("config", [{"architectures": "Llama", "model_type": 3}, {}])
def test_a_config_of_another_form_is_no_matter(model, config):
    (model / "config.json").write_text(json.dumps(config))
    summary = summarise(open_checkpoint(model))
    assert (summary.architectures, summary.model_type) == ((), None)


def test_quantised_weights_are_a_warning(model):
    config = {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}
    (model / "config.json").write_text(json.dumps(config))
    (warning,) = summarise(open_checkpoint(model)).warnings
    assert "quantised" in warning
