"""Plans over hub models, against a local stand-in: what is fetched, and what is pinned."""

import json
from pathlib import Path

import pytest
import torch
from hub_stand_in import COMMIT, OTHER, StandInHub
from safetensors.torch import load_file, save

import mergeengine
from mergeengine.output.lock import read_lock
from mergeengine.plan import load_plan
from mergeengine.workflow.locking import lock_plan
from mergeengine.workflow.settings import Settings

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SEEDS = {"org/target": 0, "org/base": 1, "org/ft": 2}


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(1000, 600, generator=generator).to(torch.bfloat16)
        for name in ("layers.0.w", "layers.1.w")
    }


def files(seed: int) -> dict[str, bytes]:
    values = tensors(seed)
    index = {"weight_map": {"layers.0.w": A, "layers.1.w": B}}
    return {
        "config.json": json.dumps({"model_type": "toy"}).encode(),
        "tokenizer.json": b"{}",
        "README.md": b"---\nlicense: mit\n---\n",
        "model.safetensors.index.json": json.dumps(index).encode(),
        A: save({"layers.0.w": values["layers.0.w"]}),
        B: save({"layers.1.w": values["layers.1.w"]}),
    }


@pytest.fixture
def plan(empty_hub: StandInHub, tmp_path: Path) -> Path:
    for repo, seed in SEEDS.items():
        empty_hub.models[repo] = {COMMIT: files(seed)}
    path = tmp_path / "plan.yaml"
    path.write_text(
        "version: 1\ntarget: org/target\nsource_base: org/base\nsource_ft: org/ft\n"
        "masks:\n  - {layers: 1, scale: 0}\noutput: {path: ./out}\n"
    )
    return path


def fetched(hub: StandInHub, least: int = 400_000) -> list[str]:
    """Files of which more than headers were sent."""
    return sorted(name for method, name, size in hub.log if method == "GET" and size > least)


def expected() -> dict[str, torch.Tensor]:
    target, base, ft = (tensors(seed) for seed in SEEDS.values())
    first = "layers.0.w"
    delta = ft[first].float() - base[first].float()
    return {**target, first: (target[first].float() + delta).to(torch.bfloat16)}


def test_only_what_is_needed_is_fetched(empty_hub: StandInHub, plan: Path, tmp_path: Path) -> None:
    result = mergeengine.run(plan)
    saved = load_file(result.output / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in expected().items())
    assert fetched(empty_hub) == [A, A, A, B]  # the frozen layer is the target's alone
    card = (result.output / "README.md").read_text()
    assert "license: mit" in card
    assert "- org/target\n" in card
    assert COMMIT in (result.output / "mergeengine.json").read_text()


def test_planning_fetches_no_weights(empty_hub: StandInHub, plan: Path) -> None:
    from mergeengine.workflow.status import foresee

    status = foresee(load_plan(plan), Settings())
    assert fetched(empty_hub) == []
    assert status.download_bytes == sum(len(files(0)[name]) for name in (A, A, A, B))


def test_the_lock_holds_the_commit(empty_hub: StandInHub, plan: Path) -> None:
    mergeengine.run(plan)
    lock = read_lock(plan.with_suffix(".lock"))
    assert lock is not None
    assert dict(lock.models) == {repo: f"{repo}@{COMMIT}" for repo in SEEDS}
    newer = {OTHER: files(7), COMMIT: files(SEEDS["org/ft"])}
    empty_hub.models["org/ft"] = newer  # main moves on
    assert not mergeengine.run(plan).made
    lock_plan(load_plan(plan), Settings(), update=True)
    lock = read_lock(plan.with_suffix(".lock"))
    assert lock is not None
    assert lock.models["org/ft"] == f"org/ft@{OTHER}"
    assert mergeengine.run(plan).made


def test_offline_from_the_cache(empty_hub: StandInHub, plan: Path, tmp_path: Path) -> None:
    plan.write_text(plan.read_text().replace("scale: 0", "scale: 1"))  # every shard is fetched
    mergeengine.run(plan)
    empty_hub.log.clear()
    result = mergeengine.run(plan, output=tmp_path / "again", offline=True)
    assert result.made
    assert empty_hub.log == []


def test_offline_with_a_part_of_a_model(plan: Path) -> None:
    mergeengine.run(plan)
    with pytest.raises(mergeengine.CheckpointError, match="not in the local cache") as raised:
        mergeengine.run(plan, offline=True)
    assert B in str(raised.value)


def test_offline_without_a_cache_is_one_clear_error(plan: Path) -> None:
    with pytest.raises(mergeengine.CheckpointError, match="offline"):
        mergeengine.run(plan, offline=True)
    assert not (plan.parent / "out").exists()


@pytest.mark.network
def test_the_real_hub(tmp_path: Path) -> None:
    """A tiny public model, read and doubled; needs the network."""
    model = mergeengine.open_checkpoint("hf-internal-testing/tiny-random-LlamaForCausalLM")
    path = (model * 2.0 - model).save(tmp_path / "same")
    assert mergeengine.verify(path) == []
