"""What a plan took from elsewhere is in its lock and its manifest, and `--locked` notices it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import mergeengine
from mergeengine.errors import VerificationError

PLAN = """\
version: 1
name: ${env:WHO}$$
include: models.yaml
vars: {half: 0.5}
scaling: ${half}
output: {path: out}
"""
MODELS = "target: ./target\nsource_base: ./base\nsource_ft: ./ft\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for seed, name in enumerate(("target", "base", "ft")):
        generator = torch.Generator().manual_seed(seed)
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "toy"}')
        save_file(
            {"w": torch.randn(4, 4, generator=generator)}, tmp_path / name / "model.safetensors"
        )
    (tmp_path / "plan.yaml").write_text(PLAN)
    (tmp_path / "models.yaml").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHO", "ann")
    return tmp_path


def document(name: str) -> Any:
    return json.loads(Path(name).read_text())


def test_lock_and_manifest(here: Path) -> None:
    assert mergeengine.run("plan.yaml").made
    lock, plan = document("plan.lock"), document("out/mergeengine.json")["plan"]
    for record in (lock, plan):
        assert record["vars"] == {"half": 0.5}
        assert record["environment"] == {"WHO": "ann"}
        assert record["includes"]["models.yaml"].startswith("sha256:")
    assert plan["name"] == "ann$"
    card = Path("out/README.md").read_text()
    assert "name: ann$$\n" in card, "the card's plan can be run as it stands"
    assert mergeengine.verify("out") == []
    assert not mergeengine.run("plan.yaml", locked=True).made


def test_a_plan_written_out_is_the_same_plan(here: Path) -> None:
    first = mergeengine.run("plan.yaml")
    Path("whole.yaml").write_text(
        f"version: 1\nname: ann$$\n{MODELS}scaling: 0.5\noutput: {{path: out}}\n"
    )
    again = mergeengine.run("whole.yaml")
    assert first.made
    assert not again.made
    assert first.report["identity"] == again.report["identity"]


def test_what_changes_is_noticed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mergeengine.run("plan.yaml")
    Path("models.yaml").write_text(f"# reordered\n{MODELS}")
    mergeengine.run("plan.yaml", locked=True)
    Path("models.yaml").write_text(f"{MODELS}numerics: {{compute_dtype: float64}}\n")
    with pytest.raises(VerificationError, match=r"include models.yaml: sha256:.*, now sha256:"):
        mergeengine.run("plan.yaml", locked=True)
    Path("models.yaml").write_text(MODELS)
    monkeypatch.setenv("WHO", "bob")
    with pytest.raises(VerificationError, match=r"\$\{env:WHO\}: ann, now bob"):
        mergeengine.run("plan.yaml", locked=True)
    mergeengine.run("plan.yaml", force=True)
    assert document("plan.lock")["environment"] == {"WHO": "bob"}


def test_a_plan_by_itself_has_the_lock_that_it_had(here: Path) -> None:
    Path("plan.yaml").write_text(f"version: 1\n{MODELS}output: {{path: out}}\n")
    mergeengine.run("plan.yaml")
    assert set(document("plan.lock")) == {"version", "models"}


def test_a_sweep_over_a_variable(here: Path) -> None:
    results, _ = mergeengine.sweep("plan.yaml", ["half=0.5,0.25"])
    assert [result.output.name for result in results] == ["out-half-0.5", "out-half-0.25"]
    found = document("out-half-0.25/mergeengine.json")["plan"]["vars"]
    assert found == {"half": 0.25}
