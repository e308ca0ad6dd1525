import json

import torch
from safetensors.torch import save_file

WHOLE = """\
model.steps  int64 [1]
  = target
    numbers that are not floating point are the target's

model.embed_tokens.weight                   bfloat16 [8, 4]
model.layers.{1-2}.self_attn.q_proj.weight  bfloat16 [4, 4]
model.norm.weight                           bfloat16 [4]
  = target + 0.7 · (source_ft − source_base)
    0.7  scaling: 0.7  plan.yaml:6:10

model.layers.0.mlp.up_proj.weight       bfloat16 [6, 4]
model.layers.0.self_attn.q_proj.weight  bfloat16 [4, 4]
  = target
    frozen: the scale of every delta is 0, and none is read
    0.7  scaling: 0.7         plan.yaml:6:10
    × 0  layers: 0, scale: 0  plan.yaml:8:5

model.layers.{1-2}.mlp.up_proj.weight  bfloat16 [6, 4]
  = target + 0.35 · (source_ft − source_base)
    0.7    scaling: 0.7                  plan.yaml:6:10
    × 0.5  match: "*.mlp.*", scale: 0.5  plan.yaml:9:5
"""

ONE = """\
model.layers.2.mlp.up_proj.weight  bfloat16 [6, 4]
  = target − 0.1 · (source_ft − source_base)
    -0.2   scaling: -0.2                 --set scaling=-0.2
    × 0.5  match: "*.mlp.*", scale: 0.5  plan.yaml:9:5
"""


def test_whole(here, command):
    ended = command("explain", "plan.yaml")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == WHOLE


def test_glob_and_set(here, command):
    ended = command("explain", "plan.yaml", "*.2.mlp.*", "--set", "scaling=-0.2")
    assert ended.out == ONE


def test_without_an_output_path(here, command):
    text = (here / "plan.yaml").read_text().replace("output:\n  path: out\n", "")
    (here / "plan.yaml").write_text(text)
    assert command("explain", "plan.yaml").out == WHOLE


def test_json(here, command):
    documents = command("explain", "plan.yaml", "--format", "json").json
    assert len(documents) == 9
    up = next(d for d in documents if d["name"] == "model.layers.1.mlp.up_proj.weight")
    assert up == {
        "name": "model.layers.1.mlp.up_proj.weight",
        "dtype": "bfloat16",
        "shape": [6, 4],
        "kind": "merged",
        "formula": "target + 0.35 · (source_ft − source_base)",
        "reasons": [],
        "terms": [
            {
                "source": "source1",
                "coefficient": 0.35,
                "factors": [
                    {"value": 0.7, "text": "scaling: 0.7", "at": "plan.yaml:6:10"},
                    {
                        "value": 0.5,
                        "text": 'match: "*.mlp.*", scale: 0.5',
                        "at": "plan.yaml:9:5",
                    },
                ],
                "base": "model.layers.1.mlp.up_proj.weight",
                "ft": "model.layers.1.mlp.up_proj.weight",
                "delta": "(source_ft − source_base)",
            }
        ],
    }


def test_a_glob_that_fits_nothing(here, command):
    ended = command("explain", "plan.yaml", "*.mpl.*")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "error: no tensor of the output fits '*.mpl.*'; the first is called model.steps\n"
    )


SEVERAL = """\
version: 1
name: several
target: ./target
sources:
  - {name: math, source_base: ./base, source_ft: ./ft, scaling: 0.5}
  - {name: code, source_base: ./base, source_ft: ./ft, masks: [{match: "*norm*", scale: 0}]}
output:
  dtype: [{match: "*norm*", dtype: float32}]
"""


def test_several_sources_and_a_dtype_rule(here, command):
    (here / "plan.yaml").write_text(SEVERAL)
    assert command("explain", "plan.yaml", "*norm*").out == (
        "model.norm.weight  float32 [4]\n"
        "  = target + 0.5 · (math: source_ft − source_base)\n"
        '    bfloat16 there; written as float32: match: "*norm*", dtype: float32 '
        "(plan.yaml:8:11)\n"
        "    math: 0.5  scaling: 0.5               plan.yaml:5:65\n"
        "    code: 1    scaling: 1, the default\n"
        '          × 0  match: "*norm*", scale: 0  plan.yaml:6:64\n'
    )


SCALED = """\
version: 1
target: ./target
source_base: ./base
source_ft: ./ft
scaling:
  at_most: 0.1
  value:
    - {kind: norm, value: 0}
    - {kind: mlp, value: {shallow: 0.2, deep: 1.0}}
    - {value: 0.5}
"""


def test_rules_schedules_and_norms(here, command):
    (here / "plan.yaml").write_text(SCALED)
    assert command("explain", "plan.yaml", "*.1.mlp.*").out == (
        "model.layers.1.mlp.up_proj.weight  bfloat16 [6, 4]\n"
        "  = target + min(0.6, 0.1 · ‖target‖ / ‖source_ft − source_base‖)"
        " · (source_ft − source_base)\n"
        "    the norm of the delta is bounded: at_most: 0.1 (plan.yaml:6:12)\n"
        "    0.6  kind: mlp, value: {shallow: 0.2, deep: 1} at depth 0.5  plan.yaml:9:7\n"
    )
    assert "frozen: the scale" in command("explain", "plan.yaml", "*norm*").out
    assert (
        "0.5  every other tensor, value: 0.5  plan.yaml:10:7"
        in command("explain", "plan.yaml", "*embed*").out
    )
    swept = command("explain", "plan.yaml", "*.1.mlp.*", "--set", "scaling=[0.2,1.0]").out
    assert "0.6  scaling: [0.2, 1] at depth 0.5  --set scaling=[0.2,1.0]" in swept
    ratio = command("explain", "plan.yaml", "*embed*", "--set", "scaling={ratio: 0.25}").out
    assert "= target + 0.25 · ‖target‖ / ‖source_ft − source_base‖ · (source_ft" in ratio


ADAPTED = """\
model.layers.1.self_attn.q_proj.weight  bfloat16 [4, 4]
  = target + 0.7 · (2 · B·A)
    0.7  scaling: 0.7  plan.yaml:6:10
"""


def test_an_adapter_is_shown_by_its_product(here, command):
    (here / "lora").mkdir()
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    (here / "lora/adapter_config.json").write_text(json.dumps(settings))
    module = "base_model.model.model.layers.1.self_attn.q_proj"
    factors = {f"{module}.lora_{x}.weight": torch.ones(4, 4) for x in "AB"}
    save_file(factors, here / "lora/adapter_model.safetensors")
    text = (here / "plan.yaml").read_text().replace("./ft", "{adapter: ./lora}")
    (here / "plan.yaml").write_text(text)
    ended = command("explain", "plan.yaml", "*.1.self_attn.*")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == ADAPTED
    untouched = command("explain", "plan.yaml", "model.norm.weight").out
    assert "the adapter of source1 does not change it: the delta is zero" in untouched


MASKED = """\
version: 1
target: ./target
output: {path: out}
seed: 3
sources:
  - name: math
    source_base: ./base
    source_ft: ./ft
    masks:
      - {match: "*.0.mlp.*", top: 0.25, above: 0.001, scale: 0.5}
      - {match: "*.mlp.*", drop: 0.75}
      - {match: "*embed*", rows: "6-", sign: agree_with code}
  - name: code
    source_base: ./base
    source_ft: ./target
masks:
  - {match: "*.0.*", orthogonal_to: target_shift, beta: 0.5}
  - {match: "*norm*", keep: source_ft, of: math}
  - {match: "*.1.mlp.*", file: mask.safetensors, default: 0.5}
"""


def test_actions_of_masks(here, command):
    up = {f"model.layers.{n}.mlp.up_proj.weight": torch.ones(6, 4) for n in (1,)}
    save_file(up, here / "mask.safetensors")
    (here / "plan.yaml").write_text(MASKED)
    ended = command("explain", "plan.yaml", "*.0.mlp.*")
    delta = "math: source_ft − source_base"
    other = "code: source_ft − source_base"
    assert (ended.code, ended.err) == (0, "")
    assert (
        ended.out
        == f"""\
model.layers.0.mlp.up_proj.weight  bfloat16 [6, 4]
  = target + 0.5 · top(0.25, above(0.001, orthogonal(0.5, {delta}))) + 1 · orthogonal(0.5, {other})
    math: 1      scaling: 1, the default
          × 1    match: "*.0.*", orthogonal_to: target_shift, beta: 0.5   plan.yaml:17:5
          × 0.5  match: "*.0.mlp.*", above: 0.001, top: 0.25, scale: 0.5  plan.yaml:10:9
    code: 1      scaling: 1, the default
          × 1    match: "*.0.*", orthogonal_to: target_shift, beta: 0.5   plan.yaml:17:5
"""
    )
    out = command("explain", "plan.yaml", "*.1.mlp.*").out
    assert f"= target + 4 · drop(0.75, file(mask.safetensors, {delta}))" in out
    assert '× 4  match: "*.mlp.*", drop: 0.75' in out
    out = command("explain", "plan.yaml", "*norm*").out
    assert '= source_ft\n    the tensor of ./ft: match: "*norm*", keep: source_ft, of: math' in out
    out = command("explain", "plan.yaml", "*embed*").out
    assert f"= target + 1 · sign(code, rows(6-, {delta})) + 1 · ({other})" in out


def test_tokens_and_rules_of_ratios(here, command):
    (here / "target" / "tokenizer.json").write_text('{"model": {"vocab": {"<s>": 0, "7": 5}}}')
    text = (
        (here / "plan.yaml").read_text().split("scaling")[0]
        + """\
scaling:
  - {kind: mlp, value: {ratio: [0.1, 0.3]}}
  - {kind: norm, value: {at_most: 0.2, value: -1}}
  - {value: 0.7}
masks:
  - {match: "*embed*", tokens: [<s>, {token: "7"}, 7]}
"""
    )
    (here / "plan.yaml").write_text(text)
    ended = command("explain", "plan.yaml", "*embed*")
    assert (ended.code, ended.err) == (0, "")
    assert (
        ended.out
        == """\
model.embed_tokens.weight  bfloat16 [8, 4]
  = target + 0.7 · rows(["<s>" (0), "7" (5), 7], source_ft − source_base)
    0.7  every other tensor, value: 0.7                     plan.yaml:9:13
    × 1  match: "*embed*", tokens: ["<s>" (0), "7" (5), 7]  plan.yaml:11:5
"""
    )
    norms = "‖target‖ / ‖source_ft − source_base‖"
    out = command("explain", "plan.yaml", "*.1.mlp.*").out
    assert f"= target + 0.2 · {norms} · (source_ft − source_base)" in out
    assert "kind: mlp, ratio: [0.1, 0.3] at depth 0.5  plan.yaml:7:32" in out
    out = command("explain", "plan.yaml", "*norm*").out
    assert f"= target − min(1, 0.2 · {norms}) · (source_ft − source_base)" in out
    assert "the norm of the delta is bounded: at_most: 0.2 (plan.yaml:8:35)" in out
