import pytest
import torch
from safetensors.torch import save_file

from mergeengine.analysis.explain import describe, explain, group
from mergeengine.plan import parse_plan
from mergeengine.workflow.prepare import bind_models, resolve
from mergeengine.workflow.settings import Settings

PLAN = """\
version: 1
name: explained
target: ./target
source_base: ./base
source_ft: ./ft
on_missing: keep_target
on_mismatch: keep_target
on_extra: copy
"""


@pytest.fixture
def explained(tmp_path):
    """Explain a plan over models of the given tensors, name to shape."""

    def run(text, target, base=None, ft=None, glob=None):
        for name, shapes in (("target", target), ("base", base or target), ("ft", ft or target)):
            (tmp_path / name).mkdir(exist_ok=True)
            tensors = {key: torch.ones(shape) for key, shape in shapes.items()}
            save_file(tensors, tmp_path / name / "model.safetensors")
        plan = parse_plan(text, tmp_path / "plan.yaml")
        models, _ = resolve(plan, Settings())
        return explain(plan, bind_models(plan, models).binding, glob)

    return run


def test_what_has_no_delta_says_why(explained):
    found = explained(
        PLAN,
        target={"a.w": (2,), "b.w": (2,), "c.w": (2,)},
        base={"a.w": (2,), "b.w": (3,)},
        ft={"a.w": (2,), "b.w": (3,), "c.w": (2,), "d.w": (2,)},
    )
    assert {each.name: (each.kind, each.formula) for each in found} == {
        "a.w": ("merged", "target + 1 · (source_ft − source_base)"),
        "b.w": ("mismatch", "target"),
        "c.w": ("missing", "target"),
        "d.w": ("copied", "source_ft"),
    }
    reasons = {each.name: each.reasons for each in found}
    assert reasons["a.w"] == ()
    assert reasons["b.w"] == (
        "the delta has another shape or kind, and `on_mismatch: keep_target`",
    )
    assert reasons["c.w"] == ("there is no delta for it, and `on_missing: keep_target`",)
    assert reasons["d.w"] == ("only ./ft has it, and `on_extra: copy`",)


def test_a_default_has_no_place(explained):
    (only,) = explained(PLAN, {"a.w": (2,)})
    (factor,) = only.terms[0].factors
    assert (factor.value, factor.text, factor.at) == (1.0, "scaling: 1, the default", None)


def test_coefficients_are_the_products_of_their_factors(explained):
    text = PLAN + "scaling: 0.3\nmasks: [{match: 'a*', scale: -2}]\n"
    (only,) = explained(text, {"a.w": (2,)})
    assert only.terms[0].coefficient == 0.3 * -2
    assert [factor.value for factor in only.terms[0].factors] == [0.3, -2.0]
    assert only.formula == "target − 0.6 · (source_ft − source_base)"


def test_tied_weights_are_named(explained):
    target = {"model.embed_tokens.weight": (4, 2), "lm_head.weight": (4, 2)}
    found = explained(PLAN, target, ft={"model.embed_tokens.weight": (4, 2)})
    head = next(each for each in found if each.name == "lm_head.weight")
    assert head.terms[0].ft == "model.embed_tokens.weight"
    assert head.reasons == ("in ./ft it is model.embed_tokens.weight",)


def test_a_glob_fits_whole_names(explained):
    names = {"a.w": (2,), "a.w.b": (2,), "b.a.w": (2,)}
    assert [each.name for each in explained(PLAN, names, glob="a.w")] == ["a.w"]
    assert [each.name for each in explained(PLAN, names, glob="*a.w")] == ["a.w", "b.a.w"]


def test_layers_that_are_alike_share_a_label(explained):
    shapes = {f"m.layers.{n}.w": (2,) for n in range(12)}
    shapes |= {"m.layers.5.w": (3,), "m.norm": (2,), "n.0.experts.3.w": (2,)}
    text = PLAN + "masks: [{layers: '7', scale: 0.5}]\n"
    first, second = group(explained(text, shapes))
    assert dict(first.labels) == {
        "m.layers.{0-4,6,8-11}.w": "float32 [2]",
        "m.layers.5.w": "float32 [3]",
        "m.norm": "float32 [2]",
        "n.0.experts.3.w": "float32 [2]",
    }
    assert second.labels == (("m.layers.7.w", "float32 [2]"),)
    assert describe(second.example) == "float32 [2]"


def test_every_tensor_is_in_exactly_one_group(explained):
    shapes = {f"m.layers.{n}.{part}": (2,) for n in range(4) for part in "abc"}
    text = PLAN + "masks: [{match: '*.a', scale: 0}, {layers: '1', scale: 2}]\n"
    found = explained(text, shapes)
    labels = [label for each in group(found) for label, _ in each.labels]
    assert sorted(labels) == [
        "m.layers.1.b",
        "m.layers.1.c",
        "m.layers.{0,2-3}.b",
        "m.layers.{0,2-3}.c",
        "m.layers.{0-3}.a",
    ]


def test_actions_stand_around_the_delta_in_the_order_of_their_work(explained):
    text = PLAN + (
        "scaling: 0.5\nmasks:\n"
        "  - {match: 'a*', drop: 0.5, top: 0.2, scale: 2, orthogonal_to: target_shift}\n"
        "  - {match: 'b*', keep: source_ft}\n"
    )
    first, second = explained(text, {"a.w": (2,), "b.w": (2,)})
    assert first.formula == (
        "target + 2 · drop(0.5, top(0.2, orthogonal(source_ft − source_base)))"
    )
    factor = first.terms[0].factors[1]
    assert factor.value == 4.0
    assert factor.text == (
        'match: "a*", orthogonal_to: target_shift, top: 0.2, drop: 0.5, scale: 2'
    )
    assert factor.at is not None
    assert factor.at.endswith("plan.yaml:11:5")
    assert (second.kind, second.formula) == ("kept", "source_ft")
    assert second.reasons[0].startswith('the tensor of ./ft: match: "b*", keep: source_ft (')
