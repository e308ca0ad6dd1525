"""Infinities and NaN are found while streaming and named; what rounding lost is told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mergeengine
from mergeengine import CheckpointError
from mergeengine.execution import native

NAN, INF = float("nan"), float("inf")
ROLES = ("target", "base", "ft")


def write(folder: Path, **tensors: Tensor) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "toy"}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def models(
    folder: Path, dtype: torch.dtype = torch.bfloat16, rows: int = 3000
) -> dict[str, Tensor]:
    """Three models of two tensors, ``w`` of more than two chunks; ``w`` of each."""
    generator = torch.Generator().manual_seed(8)
    found = {}
    for name in ROLES:
        found[name] = torch.randn(rows, 800, generator=generator).to(dtype)
        write(folder / name, w=found[name], n=torch.ones(20))
    return found


def spoil(folder: Path, name: str, *places: tuple[int, int], value: float = NAN) -> Tensor:
    path = folder / name / "model.safetensors"
    tensors = {key: value.clone() for key, value in load_file(path).items()}
    for place in places:
        tensors["w"][place] = value
    write(folder / name, **tensors)
    return tensors["w"]


def plan(folder: Path, **more: Any) -> Path:
    path = folder / "plan.yaml"
    document = {
        "version": 1,
        "target": "./target",
        "source_base": "./base",
        "source_ft": "./ft",
        "output": {"path": "./out"},
        **more,
    }
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("name", "said", "value"),
    [
        ("target", "target (./target) has", INF),
        ("base", "source_base (./base) has", -INF),
        ("ft", "source_ft (./ft) has", NAN),
    ],
)
def test_an_input_that_has_such_values_is_named(
    name: str, said: str, value: float, way: str, tmp_path: Path
) -> None:
    models(tmp_path)
    spoil(tmp_path, name, (2600, 5), (2600, 9), value=value)
    with pytest.raises(CheckpointError) as raised:
        mergeengine.run(plan(tmp_path))
    text = str(raised.value)
    assert f"w: 2 computed values are infinite or NaN, the first at [2600, 5]: {said} such" in text
    assert "`on_nonfinite: keep_target` takes" in text
    assert "`allow`" in text
    assert not (tmp_path / "out").exists()


def test_the_whole_message(tmp_path: Path) -> None:
    models(tmp_path, rows=30)
    spoil(tmp_path, "ft", (7, 5))
    spoil(tmp_path, "base", (7, 5), value=INF)
    with pytest.raises(CheckpointError) as raised:
        mergeengine.run(plan(tmp_path))
    assert str(raised.value) == (
        "w: 1 computed value is infinite or NaN, at [7, 5]: source_base (./base) and source_ft "
        "(./ft) have such values there. `on_nonfinite: keep_target` takes the target's values for "
        "these elements; `allow` writes them as they are"
    )


def test_the_source_is_named_where_there_are_several(way: str, tmp_path: Path) -> None:
    models(tmp_path)
    write(tmp_path / "other", **load_file(tmp_path / "ft" / "model.safetensors"))
    spoil(tmp_path, "other", (1, 1))
    sources = [
        {"name": "one", "source_base": "./base", "source_ft": "./ft"},
        {"name": "two", "source_base": "./base", "source_ft": "./other"},
    ]
    path = plan(tmp_path, sources=sources)
    document = json.loads(path.read_text())
    del document["source_base"], document["source_ft"]
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"source_ft \(two\) \(./other\) has such values"):
        mergeengine.run(path)


def test_an_overflow_names_the_dtype_and_the_way_out(way: str, tmp_path: Path) -> None:
    write(tmp_path / "target", w=torch.full((300, 20), 3e4).to(torch.bfloat16))
    write(tmp_path / "base", w=torch.zeros(300, 20).to(torch.bfloat16))
    delta = torch.zeros(300, 20)
    delta[7, 3] = 4e4
    write(tmp_path / "ft", w=delta.to(torch.bfloat16))
    path = plan(tmp_path, output={"path": "./out", "dtype": "float16"})
    with pytest.raises(CheckpointError) as raised:
        mergeengine.run(path)
    assert "at [7, 3]: no input has such values: these left the range of float16" in str(
        raised.value
    )
    assert "`output.dtype: float32` has room" in str(raised.value)
    plan(tmp_path, output={"path": "./out", "dtype": "float16"}, on_nonfinite="keep_target")
    saved = load_file(mergeengine.run(path).output / "model.safetensors")["w"]
    expected = torch.full((300, 20), 3e4).to(torch.bfloat16).to(torch.float16)
    assert torch.equal(saved, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_targets_values_are_kept_and_nothing_else_changes(
    dtype: str, way: str, tmp_path: Path
) -> None:
    held = models(tmp_path)
    places = [(0, 0), (1500, 799), (2999, 3)]
    held["ft"] = spoil(tmp_path, "ft", *places)
    path = plan(
        tmp_path,
        scaling=0.5,
        on_nonfinite="keep_target",
        output={"path": "./out", "dtype": dtype},
    )
    result = mergeengine.run(path)
    saved = load_file(result.output / "model.safetensors")["w"]
    t, b, f = (held[name].double() for name in ROLES)
    compute = torch.float64 if dtype == "float32" else torch.float32
    exact = t.to(compute) + (f.to(compute) - b.to(compute)) * 0.5
    expected = torch.where(exact.isfinite(), exact, t.to(compute)).to(getattr(torch, dtype))
    assert torch.equal(saved, expected)
    (warning,) = [text for text in result.warnings if "infinite" in text]
    assert warning.startswith("w: 3 computed values are infinite or NaN, the first at [0, 0]: ")
    assert warning.endswith("these elements are the target's, as `on_nonfinite: keep_target` says")
    assert mergeengine.verify(str(result.output)) == []


def test_a_target_without_a_finite_value_cannot_be_kept(way: str, tmp_path: Path) -> None:
    models(tmp_path)
    spoil(tmp_path, "target", (4, 4))
    spoil(tmp_path, "ft", (3, 3))
    with pytest.raises(CheckpointError) as raised:
        mergeengine.run(plan(tmp_path, on_nonfinite="keep_target"))
    text = str(raised.value)
    assert text.startswith("w: 1 computed value is infinite or NaN, at [4, 4]: target (./target)")
    assert "has nothing to keep there" in text


def test_what_is_allowed_is_written_as_it_is_and_told(way: str, tmp_path: Path) -> None:
    held = models(tmp_path)
    held["ft"] = spoil(tmp_path, "ft", (0, 1), (2000, 7))
    result = mergeengine.run(plan(tmp_path, on_nonfinite="allow"))
    saved = load_file(result.output / "model.safetensors")["w"]
    expected = (held["target"].float() + (held["ft"].float() - held["base"].float())).bfloat16()
    assert torch.allclose(saved, expected, rtol=0, atol=0, equal_nan=True)
    assert saved.isnan().sum() == 2
    (warning,) = [text for text in result.warnings if "infinite" in text]
    assert "w: 2 computed values are infinite or NaN, the first at [0, 1]" in warning
    assert "such a model is of no use" in warning


def test_many_tensors_are_told_of_in_few_lines(tmp_path: Path) -> None:
    for name in ROLES:
        value = NAN if name == "ft" else 1.0
        write(tmp_path / name, **{f"t{n:02}": torch.full((4,), value) for n in range(30)})
    result = mergeengine.run(plan(tmp_path, on_nonfinite="allow"))
    told = [text for text in result.warnings if "infinite" in text or "the same" in text]
    assert len(told) == 6
    assert told[-1] == "the same in 25 more tensors: t05, t06, t07, t08, t09 and 20 more"


def test_a_norm_that_spreads_what_one_element_has(tmp_path: Path) -> None:
    models(tmp_path)
    spoil(tmp_path, "base", (2900, 2))
    with pytest.raises(CheckpointError) as raised:
        mergeengine.run(plan(tmp_path, scaling={"ratio": 0.1}))
    text = str(raised.value)
    assert "source_base (./base) has such values elsewhere, which a norm, a sum or" in text


def test_a_ranking_does_not_hide_it(way: str, tmp_path: Path) -> None:
    models(tmp_path)
    spoil(tmp_path, "ft", (2900, 2))
    with pytest.raises(CheckpointError, match=r"at \[2900, 2\]: source_ft \(./ft\) has"):
        mergeengine.run(plan(tmp_path, masks=[{"match": "*", "top": 0.2}]))


def test_what_is_only_copied_is_not_looked_at(way: str, tmp_path: Path) -> None:
    models(tmp_path)
    spoil(tmp_path, "target", (1, 1))
    result = mergeengine.run(plan(tmp_path, masks=[{"match": "w", "scale": 0.0}]))
    saved = load_file(result.output / "model.safetensors")["w"]
    assert saved.isnan().sum() == 1
    assert not any("infinite" in text for text in result.warnings)


def test_each_output_of_a_sweep_is_told_of_by_itself(way: str, tmp_path: Path) -> None:
    write(tmp_path / "target", w=torch.full((300, 20), 3e4).half())
    write(tmp_path / "base", w=torch.zeros(300, 20).half())
    write(tmp_path / "ft", w=torch.full((300, 20), 4e4).half())
    path = plan(tmp_path, on_nonfinite="keep_target")
    results, _ = mergeengine.sweep(path, ["scaling=0.5,1.0"])
    told = [any("infinite" in text for text in result.warnings) for result in results]
    assert told == [False, True]
    values = [load_file(each.output / "model.safetensors")["w"][0, 0] for each in results]
    assert values == [5e4, torch.tensor(3e4).half()]


# --- what rounding lost ------------------------------------------------------------------------


def close(folder: Path, relative: float, dtype: torch.dtype = torch.bfloat16) -> None:
    """Models whose delta is ``relative`` of the target, w of 2.3 chunks."""
    generator = torch.Generator().manual_seed(4)
    target = torch.randn(3000, 800, generator=generator)
    base = target + 0.1 * torch.randn(3000, 800, generator=generator)
    ft = base + relative * torch.randn(3000, 800, generator=generator)
    for name, values in zip(ROLES, (target, base, ft), strict=True):
        write(folder / name, w=values.to(dtype), n=torch.ones(20))


def test_the_report_has_the_error_of_each_tensor_and_of_all(way: str, tmp_path: Path) -> None:
    close(tmp_path, 0.01)
    result = mergeengine.run(plan(tmp_path, scaling=0.7))
    precision = result.report["precision"]
    held = [load_file(tmp_path / name / "model.safetensors")["w"].double() for name in ROLES]
    added = 0.7 * (held[2] - held[1])
    saved = load_file(result.output / "model.safetensors")["w"].double()
    true = float((saved - held[0] - added).norm() / added.norm())
    assert precision["error"] == pytest.approx(true, rel=0.02)
    assert precision["dtypes"]["bfloat16"] == pytest.approx(true, rel=0.02)
    assert precision["tensors"].keys() == {"w", "n"}
    assert precision["tensors"]["w"] == pytest.approx(true, rel=0.02)
    assert precision["tensors"]["n"] is None, "nothing was added to it"
    assert "first 32768 of every 1048576" in precision["sample"]


def test_much_that_is_lost_is_warned_of_with_the_way_out(tmp_path: Path) -> None:
    close(tmp_path, 0.002)
    path = plan(tmp_path, scaling=0.7)
    result = mergeengine.run(path)
    (warning,) = [text for text in result.warnings if "rounding" in text]
    assert warning.startswith("rounding to bfloat16 changed the result by ")
    assert "`output.dtype: float32` keeps it" in warning
    result = mergeengine.run(path, overrides=["output.dtype=float32"])
    assert not any("rounding" in text for text in result.warnings)
    assert result.report["precision"]["error"] < 1e-4


def test_a_usual_delta_is_not_warned_of(tmp_path: Path) -> None:
    close(tmp_path, 0.02)
    result = mergeengine.run(plan(tmp_path, scaling=0.7))
    assert not any("rounding" in text for text in result.warnings)


def test_the_figures_are_the_same_by_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close(tmp_path, 0.01)
    found = []
    for loop, workers in (("1", 1), ("1", 2), ("0", 2)):
        monkeypatch.setenv(native.SWITCH, loop)
        result = mergeengine.run(plan(tmp_path, scaling=0.7), workers=workers, force=True)
        found.append(json.dumps(result.report["precision"]))
    assert len(set(found)) == 1


def test_outputs_of_a_sweep_have_figures_of_their_own(tmp_path: Path) -> None:
    close(tmp_path, 0.01)
    path = plan(tmp_path)
    results, _ = mergeengine.sweep(path, ["scaling=0.3,1.0"])
    swept = [result.report["precision"] for result in results]
    alone = [
        mergeengine.run(path, overrides=[f"scaling={value}"], force=True).report["precision"]
        for value in (0.3, 1.0)
    ]
    assert swept == alone
    assert swept[0]["error"] > swept[1]["error"]


# --- a target that is not stored as it is --------------------------------------------------------


def eight_bits(folder: Path, name: str, bad: float | None = None) -> Tensor:
    """Make a model's ``w`` one in 8 bits with scales of blocks (``bad``: one of them); what it
    means, in float32."""
    w = load_file(folder / name / "model.safetensors")["w"].float()
    rows, columns = w.shape
    scale = torch.full((-(-rows // 128), -(-columns // 128)), 0.02)
    stored = (w / 0.02).to(torch.float8_e4m3fn)
    if bad is not None:
        scale[0, 1] = bad
    spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :columns]
    write(folder / name, w=stored, w_scale_inv=scale, n=torch.ones(20))
    quantisation = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config = {"model_type": "toy", "torch_dtype": "bfloat16", "quantization_config": quantisation}
    (folder / name / "config.json").write_text(json.dumps(config))
    return stored.float() * spread


def test_the_values_of_a_target_in_8_bits_are_kept(tmp_path: Path) -> None:
    held = models(tmp_path, rows=1400)
    target = eight_bits(tmp_path, "target")
    ft = spoil(tmp_path, "ft", (0, 0), (1399, 700))
    result = mergeengine.run(plan(tmp_path, on_nonfinite="keep_target"))
    saved = load_file(result.output / "model.safetensors")["w"]
    exact = target + (ft.float() - held["base"].float())
    assert torch.equal(saved, torch.where(exact.isfinite(), exact, target).bfloat16())
    (warning,) = [text for text in result.warnings if "infinite" in text]
    assert "w: 2 computed values are infinite or NaN, the first at [0, 0]: source_ft" in warning


def test_rounding_is_measured_upon_a_target_in_8_bits(tmp_path: Path) -> None:
    close(tmp_path, 0.002)
    target = eight_bits(tmp_path, "target").double()
    result = mergeengine.run(plan(tmp_path, scaling=0.7))
    base, ft = (load_file(tmp_path / name / "model.safetensors")["w"] for name in ("base", "ft"))
    added = 0.7 * (ft.double() - base.double())
    saved = load_file(result.output / "model.safetensors")["w"].double()
    true = float((saved - target - added).norm() / added.norm())
    assert result.report["precision"]["tensors"]["w"] == pytest.approx(true, rel=0.02)
    assert any("rounding to bfloat16 changed the result by" in text for text in result.warnings)


def test_what_is_not_measured_is_not_what_nothing_was_added_to(tmp_path: Path) -> None:
    """Weights that are written in 8 bits again are no sums any more."""
    close(tmp_path, 0.01)
    eight_bits(tmp_path, "target")
    output = {"path": "./out", "quantization": "keep"}
    precision = mergeengine.run(plan(tmp_path, output=output)).report["precision"]
    assert precision["not_measured"] == ["w"]
    assert precision["tensors"] == {"n": None}
    whole = mergeengine.run(plan(tmp_path), force=True).report["precision"]
    assert whole["not_measured"] == []
    assert whole["tensors"].keys() == {"n", "w"}


@pytest.mark.parametrize("on_nonfinite", ["error", "keep_target"])
def test_a_bad_scale_is_named(on_nonfinite: str, tmp_path: Path) -> None:
    models(tmp_path, rows=300)
    eight_bits(tmp_path, "target", bad=INF)
    with pytest.raises(CheckpointError) as raised:
        mergeengine.run(plan(tmp_path, on_nonfinite=on_nonfinite))
    said = "the first at [0, 128]: w_scale_inv of target (./target) has such values there"
    assert said in str(raised.value)


def test_a_bad_scale_is_named_beside_a_bad_weight(tmp_path: Path) -> None:
    models(tmp_path, rows=300)
    spoil(tmp_path, "base", (3, 130))
    eight_bits(tmp_path, "ft", bad=NAN)
    with pytest.raises(CheckpointError) as raised:
        mergeengine.run(plan(tmp_path))
    said = "source_base (./base) and w_scale_inv of source_ft (./ft) have such values there"
    assert said in str(raised.value)


def test_the_targets_values_are_kept_by_methods_that_are_no_sums(tmp_path: Path) -> None:
    """What a mean of models is of, weighted, is not the target; this has a value all the same."""
    held = models(tmp_path, rows=30)
    ft = spoil(tmp_path, "ft", (7, 5))
    path = plan(
        tmp_path,
        method="linear",
        target="./target",
        sources=[{"model": "./target", "scaling": 0.5}, {"model": "./ft", "scaling": 0.5}],
        on_nonfinite="keep_target",
    )
    document = json.loads(path.read_text())
    del document["source_base"], document["source_ft"]
    path.write_text(json.dumps(document))
    result = mergeengine.run(path)
    saved = load_file(result.output / "model.safetensors")["w"]
    assert saved[7, 5] == held["target"][7, 5]
    exact = (held["target"].double() + ft.double()) / 2
    exact[7, 5] = held["target"][7, 5].double()
    assert torch.allclose(saved.double(), exact, rtol=0.01)
    assert result.report["precision"]["not_measured"] == ["n", "w"]
