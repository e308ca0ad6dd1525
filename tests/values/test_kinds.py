"""What kinds tensors are of, in the naming of many architectures."""

import pytest

from mergeengine.values.anatomy import Anatomy, lone


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("model.layers.3.self_attn.q_proj.weight", {"attention", "q_proj"}),
        ("model.layers.3.self_attn.q_proj.bias", {"attention", "q_proj", "bias"}),
        ("model.layers.3.post_attention_layernorm.weight", {"norm", "post_attention_layernorm"}),
        ("model.layers.3.self_attn.q_norm.weight", {"attention", "norm", "q_norm"}),
        ("model.layers.3.mlp.experts.7.up_proj.weight", {"mlp", "expert", "up_proj"}),
        ("model.layers.3.mlp.shared_experts.up_proj.weight", {"mlp", "expert", "up_proj"}),
        ("model.layers.3.mlp.router.weight", {"mlp", "router"}),
        ("model.embed_tokens.weight", {"embedding", "embed_tokens"}),
        ("bert.embeddings.LayerNorm.weight", {"embedding", "norm", "LayerNorm"}),
        ("lm_head.weight", {"head", "lm_head"}),
        ("gpt_neox.embed_out.weight", {"head", "embed_out"}),
        ("h.0.mlp.c_fc.weight", {"mlp", "c_fc"}),
        ("h.0.ln_1.weight", {"norm", "ln_1"}),
        ("layers.0.mixer.A_log", {"A_log"}),
        ("layers.0.mlp.experts.gate_up_proj_bias", {"mlp", "expert", "bias", "gate_up_proj"}),
        ("net.0.mlp.0.weight", {"mlp"}),
        ("12.weight", set()),
    ],
)
def test_by_name(name: str, kinds: set[str]) -> None:
    assert lone(name).kinds == kinds


def test_a_gate_is_a_router_where_experts_are_beside_it() -> None:
    model = Anatomy.of_names(
        ["h.0.mlp.gate.weight", "h.0.mlp.experts.0.w1.weight", "h.0.mlp.shared_expert_gate.weight",
         "h.0.attn.gate.weight", "h.0.mlp.gate_proj.weight"]
    )  # fmt: skip
    routers = [t.name for t in model.tensors() if "router" in t.kinds]
    assert routers == ["h.0.mlp.gate.weight", "h.0.mlp.shared_expert_gate.weight"]
    assert "expert" not in model.tensor("h.0.mlp.shared_expert_gate.weight").kinds


def test_shapes_tell_what_names_do_not() -> None:
    model = Anatomy(
        {
            "shared.weight": (128, 48),
            "output.weight": (128, 48),
            "output.bias": (128,),
            "enc.layer.0.norm.weight": (48,),
            "enc.layer.0.intermediate.dense.weight": (80, 48),
            "enc.layer.0.intermediate.dense.bias": (80,),
            "enc.layer.0.output.dense.weight": (48, 80),
            "enc.layer.0.proj.weight": (48, 48),
            "enc.layer.0.mixer.in_proj.weight": (80, 48),
            "h.0.attn.bias": (1, 1, 9, 9),
        }
    )
    kinds = {tensor.name: tensor.kinds for tensor in model.tensors()}
    assert "head" in kinds["output.weight"] & kinds["output.bias"]
    assert kinds["shared.weight"] == {"embedding", "shared"}
    assert "mlp" in kinds["enc.layer.0.intermediate.dense.weight"]
    assert kinds["enc.layer.0.intermediate.dense.bias"] == {"mlp", "dense", "bias"}
    assert "mlp" in kinds["enc.layer.0.output.dense.weight"]
    assert kinds["enc.layer.0.proj.weight"] == {"proj"}
    assert kinds["enc.layer.0.mixer.in_proj.weight"] == {"in_proj"}
    assert kinds["h.0.attn.bias"] == {"attention", "attn"}, "a causal mask is no bias"


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("model.embed_tokens.weight", 0),
        ("model.norm.weight", 1),
        ("lm_head.weight", 1),
        ("transformer.wpe.weight", 0),
        ("transformer.ln_f.weight", 1),
        ("bert.embeddings.LayerNorm.bias", 0),
        ("encoder.conv1.weight", 0),
        ("encoder.layernorm_embedding.weight", 0),
        ("vision_tower.pre_layrnorm.weight", 0),
        ("embed_out.weight", 1),
        ("only.0.weight", 1),
    ],
)
def test_depth_outside_the_layers(name: str, depth: int) -> None:
    assert lone(name).depth == depth


def test_facts_are_found_once() -> None:
    model = Anatomy({"a.0.w": (2,)})
    assert model.tensor("a.0.w") is model.tensor("a.0.w")
    assert model.tensor("a.0.w").kinds is model.tensor("a.0.w").kinds
    assert model.tensor("b.5.w", (3,)).layers == 6
