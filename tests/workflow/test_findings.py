"""What a run tells although it succeeds, and what it tells when it cannot."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mergeengine
from mergeengine import CheckpointError


def write(folder: Path, **tensors: Tensor) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "toy"}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    for name in ("target", "base", "ft"):
        write(tmp_path / name, w=torch.randn(300, 20).to(torch.bfloat16), n=torch.randn(20))
    return replan(tmp_path)


def replan(folder: Path, extra: str = "") -> Path:
    path = folder / "plan.yaml"
    path.write_text(
        "version: 1\ntarget: ./target\nsource_base: ./base\nsource_ft: ./ft\n"
        f"output: {{path: ./out}}\n{extra}"
    )
    return path


def warned(result: mergeengine.RunResult, part: str) -> bool:
    return any(part in warning for warning in result.warnings)


def test_a_delta_of_zero_is_told(plan: Path) -> None:
    result = mergeengine.run(plan, overrides=["source_ft=./base"])
    assert warned(result, "the delta is zero")


def test_every_missing_model_is_told_with_its_place(plan: Path, tmp_path: Path) -> None:
    plan.write_text(plan.read_text().replace("./base", "./bass").replace("./ft", "./fit"))
    with pytest.raises(CheckpointError) as raised:
        mergeengine.run(plan)
    assert f"{plan}:3:14: ./bass: there is no folder or file" in str(raised.value)
    assert f"{plan}:4:12: ./fit: there is no folder or file" in str(raised.value)


@pytest.mark.skipif(os.name == "nt", reason="folders are not made unwritable like this")
def test_a_lock_that_cannot_be_written_loses_nothing(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergeengine.workflow import run as module

    def refuse(path: Path, lock: object) -> bool:
        raise mergeengine.OutputError(f"{path}: cannot be written: permission denied")

    monkeypatch.setattr(module, "write_lock", refuse)
    result = mergeengine.run(plan)
    assert warned(result, "the lock of the inputs is missing")
    assert mergeengine.verify(str(result.output)) == []


def test_the_arithmetic_of_a_plan_is_that_of_its_lazy_checkpoint(
    plan: Path, tmp_path: Path
) -> None:
    replan(tmp_path, "scaling: 0.37\nnumerics: {compute_dtype: float64}\n")
    saved = load_file(mergeengine.run(plan, memory="1GiB").output / "model.safetensors")
    lazy = mergeengine.compile_plan(plan)
    assert all(torch.equal(saved[name], value) for name, value in lazy.tensors())
    assert {t.compute.name for t in lazy._graph().tensors} == {"float64"}


def test_saving_an_untied_head_says_so_in_the_config(tmp_path: Path) -> None:
    rows = {"model.embed_tokens.weight": torch.randn(9, 4), "lm_head.weight": torch.randn(9, 4)}
    for name in ("a", "b"):
        write(tmp_path / name, **rows)
        config = {"model_type": "toy", "tie_word_embeddings": True}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    one, other = (mergeengine.open_checkpoint(tmp_path / name) for name in ("a", "b"))
    halved = (one + other).map(lambda name, t: t * 0.5 if name.startswith("lm") else t)
    for lazy, tied in ((one + other, True), (halved, False)):
        path = lazy.save(tmp_path / f"tied {tied}")
        assert json.loads((path / "config.json").read_text())["tie_word_embeddings"] is tied


def test_a_mask_that_decides_nothing_is_told(plan: Path, tmp_path: Path) -> None:
    masks = '  - {match: "*", scale: 0.5}\n  - {match: "w", scale: 0.25}\n'
    replan(tmp_path, f"masks:\n{masks}")
    result = mergeengine.run(plan)
    assert warned(result, "plan.yaml:8:5: this mask")
    assert "plan.yaml" not in (result.output / "mergeengine.json").read_text()
    replan(tmp_path, "masks:\n" + "".join(reversed(masks.splitlines(keepends=True))))
    assert not warned(mergeengine.run(plan), "this mask")
