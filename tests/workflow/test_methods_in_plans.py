"""Methods in plans: what a user writes, what is refused, and that the numbers are the method's."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergeengine.analysis.explain import explain
from mergeengine.cli import call
from mergeengine.errors import CheckpointError, PlanError
from mergeengine.methods.registry import methods
from mergeengine.plan import parse_plan
from mergeengine.workflow.prepare import bind_models, prepare, resolve
from mergeengine.workflow.run import run
from mergeengine.workflow.settings import Settings

SHAPES = {"model.embed_tokens.weight": (8, 4), "model.norm.weight": (4,)}
for _layer in range(3):
    SHAPES[f"model.layers.{_layer}.mlp.up_proj.weight"] = (6, 4)
    SHAPES[f"model.layers.{_layer}.input_layernorm.weight"] = (4,)

DELTAS = """\
version: 1
target: ./t
method: {method}
sources:
  - {{name: one, source_base: ./b, source_ft: ./f{first}}}
  - {{name: two, source_base: ./c, source_ft: ./g{second}}}
"""
MODELS = """\
version: 1
method: {method}
sources:
  - {{name: one, model: ./f{first}}}
  - {{name: two, model: ./g{second}}}
"""


def written(method: str, form: str = DELTAS, one: str = "", two: str = "", after: str = "") -> str:
    """A plan of two sources, with more beside each of them and after all."""
    first, second = (f", {each}" if each else "" for each in (one, two))
    return form.format(method=method, first=first, second=second) + f"{after}\n"


@pytest.fixture
def models(tmp_path: Path) -> dict[str, dict[str, torch.Tensor]]:
    made = {}
    for number, name in enumerate("tbcfg"):
        generator = torch.Generator().manual_seed(number)
        made[name] = {
            each: torch.randn(shape, generator=generator) for each, shape in SHAPES.items()
        }
        (tmp_path / name).mkdir()
        save_file(made[name], tmp_path / name / "model.safetensors")
    return made


def merged(text: str, folder: Path) -> dict[str, torch.Tensor]:
    run(parse_plan(text, folder / "p.yaml"), output=folder / "out")
    return load_file(folder / "out" / "model.safetensors")


def test_deltas_between_different_bases(tmp_path, models) -> None:
    text = DELTAS.format(
        method="task_arithmetic", first=", scaling: 0.5", second=", scaling: [0, 1]"
    )
    found = merged(text + "parameters: {lambda: 2}\n", tmp_path)
    for name in SHAPES:
        t, b, c, f, g = (models[each][name].double() for each in "tbcfg")
        depth = 1.0 if name[6:] == "norm.weight" else 0.0
        depth = int(name.split(".")[2]) / 2 if "layers" in name else depth
        expected = t + 2 * (0.5 * (f - b) + depth * (g - c))
        assert torch.allclose(found[name].double(), expected, atol=1e-6)


def test_models_and_no_target(tmp_path, models) -> None:
    found = merged(MODELS.format(method="linear", first=", scaling: 3", second=""), tmp_path)
    for name in SHAPES:
        expected = 0.75 * models["f"][name].double() + 0.25 * models["g"][name].double()
        assert torch.allclose(found[name].double(), expected, atol=1e-6)


def test_a_model_is_a_delta_to_the_target(tmp_path, models) -> None:
    text = (
        "version: 1\ntarget: ./t\nmethod: nearswap\nparameters: {t: 0.1}\nsources: [{model: ./f}]\n"
    )
    found = merged(text, tmp_path)
    for name in SHAPES:
        change = (models["f"][name].double() - models["t"][name].double()).clamp(-0.1, 0.1)
        assert torch.allclose(found[name].double(), models["t"][name].double() + change, atol=1e-6)


def test_masks_scale_what_comes_of_all(tmp_path, models) -> None:
    masks = "masks:\n  - {kind: norm, scale: 0}\n  - {layers: 0, scale: 0.5}\n"
    text = MODELS.format(method="linear", first="", second="").replace(
        "method:", "target: ./t\nmethod:"
    )
    found = merged(text + masks, tmp_path)
    for name in SHAPES:
        t, f, g = (models[each][name].double() for each in "tfg")
        mean = (f + g) / 2
        if "norm" in name:
            assert torch.equal(found[name], models["t"][name])
        elif ".0." in name:
            assert torch.allclose(found[name].double(), (t + mean) / 2, atol=1e-6)
        else:
            assert torch.allclose(found[name].double(), mean, atol=1e-6)


def test_a_parameter_of_all_and_of_one_source(tmp_path, models) -> None:
    text = DELTAS.format(method="ties", first=", parameters: {density: 1}", second="")
    text += "parameters: {density: [{kind: norm, value: 1}, {value: 0.25}], normalize: false}\n"
    found = merged(text, tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    one = models["f"][name] - models["b"][name]
    two = models["g"][name] - models["c"][name]
    limit = two.abs().reshape(-1).sort(descending=True).values[int(0.25 * two.numel()) - 1]
    two = torch.where(two.abs() >= limit, two, 0.0)
    sign = torch.where(one + two >= 0, 1.0, -1.0)
    change = sum(torch.where(each.sign() == sign, each, 0.0) for each in (one, two))
    assert torch.allclose(found[name], models["t"][name] + change, atol=1e-6)


@pytest.mark.parametrize("name", list(methods()))
def test_every_method_runs_from_a_plan(name: str, tmp_path, models) -> None:
    """As defaults are, again to the same bytes, and from its models where it merges those."""
    method = methods()[name]
    forms = [DELTAS, MODELS] if method.space == "both" else [DELTAS]
    for number, form in enumerate(forms):
        text = form.format(method=name, first="", second="")
        if method.sources[1] == 1:
            text = text[: text.index("  - {name: two")]
        plan = parse_plan(text, tmp_path / "p.yaml")
        for workers in (1, 2):
            output = tmp_path / f"out{number}{workers}"
            run(plan, workers=workers, output=output)
        outputs = [tmp_path / f"out{number}{w}" / "model.safetensors" for w in (1, 2)]
        assert outputs[0].read_bytes() == outputs[1].read_bytes()
        opened, _ = resolve(plan, Settings())
        explained = explain(plan, bind_models(plan, opened).binding)
        if name != "transfer":
            assert all(f"{name}(" in each.formula for each in explained)


def test_the_formula(tmp_path, models) -> None:
    text = DELTAS.format(
        method="ties", first=", scaling: 0.5, parameters: {density: 0.3}", second=""
    )
    plan = parse_plan(text + "parameters: {lambda: [0.5, 1]}\n", tmp_path / "p.yaml")
    opened, _ = resolve(plan, Settings())
    (each,) = explain(plan, bind_models(plan, opened).binding, "*layers.1.mlp*")
    assert each.formula == (
        "target + ties(0.5 · (one: source_ft − source_base) [density: 0.3], "
        "1 · (two: source_ft − source_base) [density: 1]; normalize: true, lambda: 0.75)"
    )
    assert each.reasons == (f"lambda: [0.5, 1] at depth 0.5 ({tmp_path}/p.yaml:7:22)",)
    assert [factor.text for factor in each.terms[0].factors] == ["scaling: 0.5", "density: 0.3"]


REFUSED = {
    "method": (written("tiess"), "p.yaml:3:9: there is no method `tiess`; did you mean `ties`?"),
    "unknown": (
        written("ties", after="parameters: {densty: 1}"),
        "p.yaml:7:22: `ties` has no parameter `densty`; did you mean `density`?",
    ),
    "of all": (
        written("ties", one="parameters: {lambda: 1}"),
        "`lambda` is the same for all sources: write it under the plan's `parameters`",
    ),
    "bounds": (
        written("ties", one="parameters: {density: [0, 1.5]}"),
        "`density`: expected a number from 0 to 1, found 1.5",
    ),
    "flag": (
        written("ties", after="parameters: {normalize: 1}"),
        "`normalize`: expected true or false, found 1",
    ),
    "choice": (
        written("dare_ties", after="parameters: {rescale: L1}"),
        "`rescale`: expected one of density, norm, none, found L1",
    ),
    "integer": (
        written("karcher", after="parameters: {max_iter: 1.5}"),
        "`max_iter`: expected a whole number of at least 1, found 1.5",
    ),
    "weights": (
        written("karcher", one="scaling: 2"),
        "`karcher` gives its sources no weights: no `scaling`",
    ),
    "count": (written("nearswap"), "`nearswap` takes exactly one source, and the plan has 2"),
    "target": (
        written("ties", MODELS),
        "`target` is missing: `ties` changes a model, the target",
    ),
    "norms": (
        written("linear", MODELS, one="scaling: {ratio: 1}"),
        "norms scale deltas; a model has a factor",
    ),
    "own masks": (
        written("linear", MODELS, one="masks: [{layers: 0, scale: 0}]"),
        "only deltas have masks of their own",
    ),
    "elements": (
        written("linear", MODELS, after="masks: [{layers: 0, top: 0.5}]"),
        "only deltas have elements that are chosen (top: 0.5)",
    ),
    "mixed": (
        written("linear", MODELS).replace("model: ./g", "source_base: ./b, source_ft: ./g"),
        "merges models or deltas: give all sources a `model`, or none",
    ),
    "both": (
        written("linear", MODELS, one="source_ft: ./g"),
        "`source_ft` cannot stand beside `model`",
    ),
    "no direction": (
        written("multislerp", one="scaling: 1", two="scaling: -1"),
        "`multislerp` cannot merge model.embed_tokens.weight: its weights have the sum 0",
    ),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(text: str, message: str, tmp_path, models) -> None:
    with pytest.raises(PlanError) as raised:
        prepare(parse_plan(text, tmp_path / "p.yaml"), output=tmp_path / "out")
    assert message in str(raised.value)


def test_a_tensor_that_one_model_lacks(tmp_path, models) -> None:
    del models["g"]["model.norm.weight"]
    save_file(models["g"], tmp_path / "g" / "model.safetensors")
    text = MODELS.format(method="linear", first="", second="")
    with pytest.raises(CheckpointError):
        merged(text, tmp_path)
    found = merged(text + "on_missing: keep_target\n", tmp_path)
    assert torch.equal(found["model.norm.weight"], models["f"]["model.norm.weight"])


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["methods"]) == 0
    listed = capsys.readouterr().out
    for name in methods():
        assert call(["methods", name]) == 0
        assert f"{name}: " in capsys.readouterr().out
        assert name in listed
    assert call(["methods", "tise"]) == 2
    assert "did you mean `ties`?" in capsys.readouterr().err


def test_validate_knows_methods(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.yaml").write_text(DELTAS.format(method="tiess", first="", second=""))
    assert call(["validate", str(tmp_path / "p.yaml")]) == 2
    assert "did you mean `ties`" in capsys.readouterr().err


def test_the_documentation_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["methods", "--format", "markdown"]) == 0
    table = capsys.readouterr().out
    written = (Path(__file__).parents[2] / "mergeengine" / "methods" / "README.md").read_text(
        encoding="utf-8"
    )
    assert written.endswith(table), "mergeengine methods --format markdown makes the table"


def test_deltas_of_adapters(tmp_path, models) -> None:
    """What an adapter adds is its delta, exactly, whatever the method."""
    module, folder = "model.layers.1.mlp.up_proj", tmp_path / "lora"
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    right, left = torch.randn(2, 4), torch.randn(6, 2)
    factors = {"lora_A": right, "lora_B": left}
    save_file(
        {f"base_model.model.{module}.{each}.weight": value for each, value in factors.items()},
        folder / "adapter_model.safetensors",
    )
    text = DELTAS.format(method="ties", first="", second="").replace("./g", "{adapter: ./lora}")
    found = merged(text.replace("./f", "./b"), tmp_path)
    for name in SHAPES:
        added = 2 * left @ right if name == f"{module}.weight" else torch.zeros(SHAPES[name])
        assert torch.allclose(found[name], models["t"][name] + added, atol=1e-5)


def test_models_of_different_vocabularies(tmp_path) -> None:
    """A model has no say about the rows of tokens that it lacks."""
    tokens = {"f": ["a", "b", "c"], "g": ["c", "a", "d", "e"]}
    rows = {}
    for number, (name, known) in enumerate(tokens.items()):
        rows[name] = torch.randn(len(known), 4, generator=torch.Generator().manual_seed(number))
        (tmp_path / name).mkdir()
        save_file({"model.embed_tokens.weight": rows[name]}, tmp_path / name / "model.safetensors")
        vocabulary = {token: row for row, token in enumerate(known)}
        text = json.dumps({"model": {"vocab": vocabulary}})
        (tmp_path / name / "tokenizer.json").write_text(text)
    text = MODELS.format(method="linear", first="", second="") + "output: {tokenizer: ./g}\n"
    found = merged(text, tmp_path)["model.embed_tokens.weight"]
    f, g = rows["f"], rows["g"]
    expected = [(f[2] + g[0]) / 2, (f[0] + g[1]) / 2, g[2], g[3]]
    assert torch.allclose(found[:4], torch.stack(expected), atol=1e-6)
