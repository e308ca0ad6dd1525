"""Rules that fit no tensor are errors, with what the model has instead."""

import pytest
import torch
from safetensors.torch import save_file

from mergeengine.errors import PlanError
from mergeengine.plan import parse_plan
from mergeengine.workflow.prepare import bind_models, resolve
from mergeengine.workflow.settings import Settings

HEAD = "version: 1\ntarget: ./m\nsource_base: ./m\nsource_ft: ./m\n"
SHAPES = {"model.embed_tokens.weight": (8, 4), "model.norm.weight": (4,), "lm_head.weight": (8, 4)}
for layer in range(4):
    SHAPES[f"model.layers.{layer}.mlp.up_proj.weight"] = (6, 4)
    SHAPES[f"model.layers.{layer}.self_attn.q_proj.weight"] = (4, 4)


@pytest.fixture
def bound(tmp_path):
    def bind(text):
        (tmp_path / "m").mkdir(exist_ok=True)
        tensors = {name: torch.ones(shape) for name, shape in SHAPES.items()}
        save_file(tensors, tmp_path / "m" / "model.safetensors")
        plan = parse_plan(HEAD + text, tmp_path / "p.yaml")
        models, _ = resolve(plan, Settings())
        return plan, bind_models(plan, models).binding

    return bind


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("layers: 4", "matches no tensor (layers: 4); the target's layers are 0 to 3"),
        ('layers: "-9--5"', "(layers: -9--5); the target's layers are 0 to 3"),
        ("kind: mpl", "of the kind `mpl` (kind: mpl); did you mean `mlp`?"),
        ("kind: router", "of the kind `router` (kind: router); the model has attention, mlp, norm"),
        ("kind: [attention, mpl]", "of the kind `mpl` (kind: [attention, mpl]); did you mean"),
        ("regex: q_prj", '(regex: "q_prj"); tensors have names with `q_proj`'),
        ('match: "*.atn.*"', "tensors have names with `self_attn`"),
        (
            "kind: head, layers: 0",
            "each condition holds for some tensors, but all of them for none",
        ),
        ("not: {kind: nrom}", "of the kind `nrom` (kind: nrom); did you mean `norm`?"),
        ("selection: wrong", "matches no tensor (layers: 7); the target's layers are 0 to 3"),
    ],
)
def test_what_matches_nothing(entry, message, bound):
    text = "selections: {wrong: {any: [{kind: mlp}, {layers: 7}]}, right: {kind: mlp}}\n"
    with pytest.raises(PlanError) as raised:
        bound(f"{text}masks:\n  - {{{entry}, scale: 0}}\n")
    assert "p.yaml:7:5: this mask" in str(raised.value)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "scaling: [{kind: mpl, value: 0}, {value: 1}]",
            "p.yaml:5:11: this rule of `scaling` matches no tensor of the kind `mpl` (kind: mpl); "
            "did you mean `mlp`?",
        ),
        (
            'scaling: {layers: {"0-3": 0, "4-": 1}}',
            "p.yaml:5:30: this rule of `scaling` matches no tensor (layers: 4-); the target's "
            "layers are 0 to 3",
        ),
        (
            'scaling: {layers: {"0-1": 0}}',
            "p.yaml:5:10: `scaling` gives no value for layers 2-3; name them too, or add "
            "`default:`",
        ),
        (
            'masks: [{kind: mlp, scale: {layers: {"0": 0}}}]',
            "p.yaml:5:9: `scale` gives no value for layers 1-3; name them too, or add `default:`",
        ),
        (
            "scaling: [{kind: mpl, value: {ratio: 1}}, {value: 1}]",
            "p.yaml:5:11: this rule of `scaling` matches no tensor of the kind `mpl` (kind: mpl); "
            "did you mean `mlp`?",
        ),
        (
            "scaling: {ratio: [{regex: nrom, value: 0}, {value: 1}]}",
            'p.yaml:5:19: this rule of `ratio` matches no tensor (regex: "nrom"); tensors have '
            "names with `norm`",
        ),
    ],
)
def test_parameters_that_do_not_fit(text, message, bound):
    with pytest.raises(PlanError) as raised:
        bound(f"{text}\n")
    assert str(raised.value).endswith(message)


def test_selections_and_kinds_decide(bound):
    text = (
        "selections:\n"
        "  upper_mlp: {layers: '-2-', kind: mlp}\n"
        "  outside: {kind: [embedding, head, expert]}\n"
        "masks:\n"
        "  - {selection: [upper_mlp, outside], scale: 0.5}\n"
        "  - {all: [{layers: even}, {not: {regex: 'q_proj'}}], scale: 0}\n"
        "output: {dtype: [{kind: norm, dtype: float64}]}\n"
    )
    _, binding = bound(text)
    assert {
        t.output.name.removesuffix(".weight"): t.deltas[0].coefficient for t in binding.tensors
    } == {
        "model.embed_tokens": 0.5,
        "model.norm": 1.0,
        "lm_head": 0.5,
        "model.layers.0.mlp.up_proj": 0.0,
        "model.layers.1.mlp.up_proj": 1.0,
        "model.layers.2.mlp.up_proj": 0.5,
        "model.layers.3.mlp.up_proj": 0.5,
        **{f"model.layers.{n}.self_attn.q_proj": 1.0 for n in range(4)},
    }
    dtypes = {t.output.name: t.output.dtype.name for t in binding.tensors}
    assert dtypes["model.norm.weight"] == "float64"
    assert dtypes["lm_head.weight"] == "float32"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "scaling:\n- {kind: mlp, value: 0}\n- {layers: 0, kind: mlp, value: 1}\n- {value: 2}",
            ["p.yaml:7:3: this rule of `scaling` (layers: 0, kind: mlp) decides no tensor"],
        ),
        (
            "scaling:\n- {layers: 0-, value: {ratio: 1}}\n- {kind: mlp, value: 1}\n- {value: 2}",
            ["p.yaml:7:3: this rule of `scaling` (kind: mlp) decides no tensor"],
        ),
        (
            "scaling: {layers: {0-2: 1, 1: 2, even: 3}, default: 0}",
            ["p.yaml:5:28: this rule of `scaling` (layers: 1) decides no tensor",
             "p.yaml:5:34: this rule of `scaling` (layers: even) decides no tensor"],
        ),
        (
            "masks: [{match: '*', scale: [{layers: 0-, value: 1}, {kind: mlp, value: 2}, "
            "{value: 3}]}]",
            ["p.yaml:5:54: this rule of `scale` (kind: mlp) decides no tensor"],
        ),
        (
            "output:\n  dtype:\n  - {match: '*', dtype: float64}\n  - {kind: mlp, dtype: float32}",
            ["p.yaml:8:5: this rule of `output.dtype` (kind: mlp) decides no tensor"],
        ),
        ("scaling: [{match: '*', value: 1}, {value: 2}]", []),
    ],
)  # fmt: skip
def test_rules_that_decide_nothing_are_a_warning(text, told, bound):
    _, binding = bound(f"{text}\n")
    assert len(binding.warnings) == len(told)
    for warning, start in zip(binding.warnings, told, strict=True):
        assert start in warning


def test_what_matches_nothing_may_be_a_warning(bound):
    masks = "masks:\n  - {match: '*atn*', scale: 0}\n  - {kind: mlp, scale: 0.5}\n"
    _, binding = bound(f"{masks}on_unmatched: warn\n")
    (warning,) = binding.warnings
    assert "p.yaml:6:5: this mask matches no tensor" in warning


def test_sides_of_the_layers(bound):
    text = "scaling:\n  - {layers: [before, 0], value: 1}\n  - {layers: after, value: 2}\n"
    plan, binding = bound(f"{text}  - {{value: 3}}\n")
    found = {
        tensor.output.name: plan.sources[0].scaling.amount.at(tensor.facts).value
        for tensor in binding.tensors
    }
    expected = {name: 1 if "embed" in name or ".0." in name else 3 for name in SHAPES}
    assert found == {**expected, "model.norm.weight": 2, "lm_head.weight": 2}
