"""Configurations as people publish them, and those of mergekit's documentation, run unchanged.

Their models are tiny ones that lie beside the configuration under the names that it has for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mergekit_reference import merged
from safetensors.torch import load_file
from tiny_llamas import make

from mergeengine.cli import call

PUBLISHED = Path(__file__).parent / "published"
NAMES = sorted(path.stem for path in PUBLISHED.glob("*.yml"))
KNOWN = (
    "linear", "passthrough", "slerp", "nearswap", "model_stock", "sce", "nuslerp", "ties",
    "task_arithmetic",
)  # fmt: skip
# Others are held by `test_it_is_the_same_plan`, which says that they are.
RUN_AS_PLANS = ("dare_ties_int8_mask", "several_documents", "block_expansion")
UNITS = {"float32": 1e-5, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((PUBLISHED / f"{name}.yml").read_text(encoding="utf-8")))


def layers_of_models(config: dict[str, Any]) -> dict[str, int]:
    """Each model, with as many layers as the configuration needs."""
    found: dict[str, int] = {}
    for part in config.get("slices", [{"sources": config.get("models", [])}]):
        for each in part["sources"]:
            _, end = each.get("layer_range", [0, 3])
            found[each["model"]] = max(end, found.get(each["model"], 0))
    if config.get("base_model") is not None:
        found.setdefault(config["base_model"], 3)
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(folder: Path, configs: list[dict[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """The models that the configurations name, but those that they make."""
    names = {config.get("name") for config in configs}
    models: dict[str, dict[str, np.ndarray]] = {}
    for config in configs:
        for name, layers in layers_of_models(config).items():
            if name not in names and name not in models:
                models[name] = make(folder / name, layers=layers)
    return models


def close(found: dict[str, torch.Tensor], expected: dict[str, np.ndarray], dtype: str) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == getattr(torch, dtype)
        allowed = UNITS[dtype] * (np.abs(expected[name]) + 0.01)
        assert (np.abs(tensor.double().numpy() - expected[name]) <= allowed).all(), name


def test_there_are_enough() -> None:
    methods = {config["merge_method"] for name in NAMES for config in documents(name)}
    assert len(NAMES) > 20
    assert len(methods) > 15


@pytest.mark.parametrize("name", NAMES)
def test_runs_unchanged(name: str, here: Path) -> None:
    configs = documents(name)
    models = made(here, configs)
    text = (PUBLISHED / f"{name}.yml").read_text(encoding="utf-8")
    (here / "config.yml").write_text(text, encoding="utf-8")
    several = len(configs) > 1
    output = here / ("out/merged" if several else "out")
    assert call(["run", "config.yml", *([] if several else ["-o", "out"])]) == 0
    found = load_file(output / "model.safetensors")
    last = configs[-1]
    dtype = last.get("out_dtype", last["dtype"])
    if all(config["merge_method"] in KNOWN for config in configs):
        for config in configs:
            of = merged(config, {each: models[each] for each in layers_of_models(config)})
            models[config.get("name", "")] = of
        close(found, of, dtype)
    assert all(torch.isfinite(each).all() for each in found.values())
    if name not in RUN_AS_PLANS:
        return
    (here / "plans").mkdir()
    assert call(["convert", "config.yml", "-o", "plans/plan.yaml"]) == 0
    assert call(["run", "plans/plan.yaml", *([] if several else ["-o", "again"])]) == 0
    again = here / ("plans/out/merged" if several else "again")
    files = {path.name for path in output.iterdir()}
    assert files == {path.name for path in again.iterdir()}
    for file in files - {"README.md", "mergeengine.json"}:
        assert (output / file).read_bytes() == (again / file).read_bytes(), file
