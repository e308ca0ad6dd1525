"""PEFT adapters as fine-tunes, against what torch computes in float64 from the same files."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_stand_in import COMMIT, OTHER, StandInHub
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import mergeengine
from mergeengine import CheckpointError
from mergeengine.checkpoints.adapter_config import read_settings

Tensors = dict[str, Tensor]
LAYER = "model.layers.0"


def made(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape).to(dtype)


def base_tensors() -> Tensors:
    return {
        "model.embed_tokens.weight": made(40, 16),
        f"{LAYER}.self_attn.q_proj.weight": made(24, 16),
        f"{LAYER}.self_attn.q_proj.bias": made(24),
        f"{LAYER}.self_attn.o_proj.weight": made(16, 16),
        f"{LAYER}.mlp.experts.gate_up_proj": made(3, 20, 16),
        f"{LAYER}.mlp.experts.down_proj": made(3, 16, 10),
        "lm_head.weight": made(40, 16),
    }


def write_model(folder: Path, tensors: Tensors, **config: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "toy", **config}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_adapter(folder: Path, tensors: Tensors, **config: Any) -> None:
    folder.mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    named = {f"base_model.model.{name}": value.contiguous() for name, value in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def factors(module: str, outputs: int, inputs: int, rank: int = 4) -> Tensors:
    return {
        f"{module}.lora_A.weight": made(rank, inputs, dtype=torch.float32),
        f"{module}.lora_B.weight": made(outputs, rank, dtype=torch.float32),
    }


def product(tensors: Mapping[str, Tensor], module: str) -> Tensor:
    one, two = (tensors[f"{module}.lora_{x}.weight"].double() for x in "AB")
    return two @ one


@pytest.fixture
def models(tmp_path: Path) -> Path:
    torch.manual_seed(11)
    for name in ("target", "base"):
        write_model(tmp_path / name, base_tensors())
    return tmp_path


def run(folder: Path, extra: str = "", **settings: Any) -> mergeengine.RunResult:
    plan = folder / "plan.yaml"
    source = "" if "source_ft" in extra or "sources" in extra else "source_ft: {adapter: ./lora}\n"
    plan.write_text(
        f"version: 1\ntarget: ./target\nsource_base: ./base\n{source}"
        f"output: {{path: ./out, dtype: float32}}\n{extra}"
    )
    return mergeengine.run(plan, **settings)


def check(folder: Path, expected: Mapping[str, Tensor], scaling: float = 1.0) -> None:
    """The output is the target plus the differences of `expected` and the base, in float64."""
    out = load_file(folder / "out" / "model.safetensors")
    target = load_file(folder / "target" / "model.safetensors")
    base = load_file(folder / "base" / "model.safetensors")
    assert out.keys() == target.keys()
    for name, value in out.items():
        delta = expected[name].double() - base[name].double() if name in expected else 0.0
        wanted = target[name].double() + scaling * delta
        torch.testing.assert_close(value.double(), wanted, rtol=2e-7, atol=1e-6, msg=name)
        if name not in expected:
            assert torch.equal(value, target[name].float())


Q, OUT = f"{LAYER}.self_attn.q_proj", f"{LAYER}.self_attn.o_proj"
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


def base_of(folder: Path) -> Tensors:
    return {k: v.double() for k, v in load_file(folder / "base" / "model.safetensors").items()}


def test_a_lora_is_base_plus_scaled_product(models: Path) -> None:
    lora = {**factors(Q, 24, 16), **factors(OUT, 16, 16)}
    write_adapter(models / "lora", lora)
    run(models, "scaling: 0.5\n")
    base = base_of(models)
    wanted = {f"{m}.weight": base[f"{m}.weight"] + 2 * product(lora, m) for m in (Q, OUT)}
    check(models, wanted, 0.5)


def test_the_delta_is_the_product_itself(models: Path) -> None:
    """Not what is left of it after adding it to the base and taking the base away again."""
    base = base_of(models)
    base[f"{OUT}.weight"] *= 2.0**60
    write_model(models / "base", {k: v.float() for k, v in base.items()})
    lora = factors(OUT, 16, 16)
    write_adapter(models / "lora", lora)
    run(models)
    target = load_file(models / "target" / "model.safetensors")[f"{OUT}.weight"].double()
    out = load_file(models / "out" / "model.safetensors")[f"{OUT}.weight"]
    torch.testing.assert_close(out.double(), target + 2 * product(lora, OUT), rtol=2e-7, atol=1e-6)


def test_of_another_base_the_whole_difference_is_taken(models: Path) -> None:
    other = base_tensors()
    write_model(models / "other", other)
    lora = factors(Q, 24, 16)
    write_adapter(models / "lora", lora)
    run(models, "source_ft: {adapter: ./lora, base: ./other}\n")
    wanted = {name: value.double() for name, value in other.items()}
    wanted[f"{Q}.weight"] += 2 * product(lora, Q)
    check(models, wanted)


def test_ranks_and_alphas_of_modules_and_rank_stabilisation(models: Path) -> None:
    lora = {**factors(Q, 24, 16, 9), **factors(OUT, 16, 16)}
    write_adapter(
        models / "lora",
        lora,
        use_rslora=True,
        rank_pattern={"q_proj": 9},
        alpha_pattern={r".*\.0\.self_attn\.q_proj": 6},
    )
    run(models)
    base = base_of(models)
    wanted = {
        f"{Q}.weight": base[f"{Q}.weight"] + 6 / 3 * product(lora, Q),
        f"{OUT}.weight": base[f"{OUT}.weight"] + 8 / 2 * product(lora, OUT),
    }
    check(models, wanted)


def with_norm(weight: Tensor, magnitude: Tensor) -> Tensor:
    return magnitude.double()[:, None] * weight / weight.norm(dim=1, keepdim=True)


def test_dora(models: Path) -> None:
    lora = factors(Q, 24, 16)
    lora[f"{Q}.lora_magnitude_vector"] = torch.rand(24) + 1
    lora[f"{EMBEDDING}.lora_embedding_A"] = torch.randn(4, 40)
    lora[f"{EMBEDDING}.lora_embedding_B"] = torch.randn(16, 4)
    lora[f"{EMBEDDING}.lora_magnitude_vector"] = torch.rand(16) + 1
    write_adapter(models / "lora", lora, use_dora=True)
    run(models)
    base = base_of(models)
    merged = base[f"{Q}.weight"] + 2 * product(lora, Q)
    one, two = (lora[f"{EMBEDDING}.lora_embedding_{x}"].double() for x in "AB")
    columns = base[f"{EMBEDDING}.weight"].T + 2 * two @ one
    wanted = {
        f"{Q}.weight": with_norm(merged, lora[f"{Q}.lora_magnitude_vector"]),
        f"{EMBEDDING}.weight": with_norm(columns, lora[f"{EMBEDDING}.lora_magnitude_vector"]).T,
    }
    check(models, wanted)


def test_weights_that_lie_sideways(models: Path) -> None:
    """As Conv1D of GPT-2 has them: a square one is understood by those beside it."""
    for name in ("target", "base"):
        write_model(
            models / name, {f"h.0.{x}.weight": made(16, n) for x, n in (("up", 48), ("out", 16))}
        )
    lora = {**factors("transformer.h.0.up", 48, 16), **factors("transformer.h.0.out", 16, 16)}
    for flag in (False, True):
        write_adapter(models / "lora", lora, fan_in_fan_out=flag)
        run(models, force=True)
        base = base_of(models)
        wanted = {
            f"h.0.{x}.weight": base[f"h.0.{x}.weight"] + 2 * product(lora, f"transformer.h.0.{x}").T
            for x in ("up", "out")
        }
        check(models, wanted)


def test_biases_whole_modules_and_rows_of_tokens(models: Path) -> None:
    lora = factors(Q, 24, 16)
    lora[f"{Q}.lora_B.bias"] = torch.randn(24)
    lora[f"{OUT}.weight"] = torch.randn(16, 16)
    lora[f"{HEAD}.weight"] = torch.randn(40, 16)
    lora[f"{EMBEDDING}.token_adapter.trainable_tokens_delta"] = torch.randn(3, 16)
    write_adapter(
        models / "lora",
        lora,
        lora_bias=True,
        modules_to_save=["o_proj", "lm_head"],
        trainable_token_indices={"embed_tokens": [7, 39, 0]},
    )
    run(models)
    base = base_of(models)
    rows = base[f"{EMBEDDING}.weight"].clone()
    rows[[7, 39, 0]] = lora[f"{EMBEDDING}.token_adapter.trainable_tokens_delta"].double()
    wanted = {
        f"{Q}.weight": base[f"{Q}.weight"] + 2 * product(lora, Q),
        f"{Q}.bias": base[f"{Q}.bias"] + 2 * lora[f"{Q}.lora_B.bias"].double(),
        f"{OUT}.weight": lora[f"{OUT}.weight"],
        f"{HEAD}.weight": lora[f"{HEAD}.weight"],
        f"{EMBEDDING}.weight": rows,
    }
    check(models, wanted)


def test_trained_biases(models: Path) -> None:
    lora = {**factors(Q, 24, 16), f"{Q}.base_layer.bias": torch.randn(24)}
    write_adapter(models / "lora", lora, bias="lora_only")
    run(models)
    base = base_of(models)
    wanted = {
        f"{Q}.weight": base[f"{Q}.weight"] + 2 * product(lora, Q),
        f"{Q}.bias": lora[f"{Q}.base_layer.bias"],
    }
    check(models, wanted)


def test_stacks_of_experts(models: Path) -> None:
    experts = f"{LAYER}.mlp.experts"
    lora = {
        **factors(f"{experts}.base_layer", 20, 16, 12),
        **factors(experts, 16, 10, 12),
    }
    write_adapter(
        models / "lora", lora, target_parameters=["experts.gate_up_proj", "experts.down_proj"]
    )
    run(models)
    base = base_of(models)
    wanted = {}
    for module, parameter in ((f"{experts}.base_layer", "gate_up_proj"), (experts, "down_proj")):
        one, two = (lora[f"{module}.lora_{x}.weight"].double() for x in "AB")
        one, two = one.view(3, 4, -1), two.view(-1, 4, 3)
        name = f"{experts}.{parameter}"
        wanted[name] = base[name] + 2 * torch.einsum("ore,eri->eoi", two, one)
    check(models, wanted)


def test_several_adapters_of_one_base(models: Path) -> None:
    loras = [factors(Q, 24, 16), {**factors(Q, 24, 16), **factors(OUT, 16, 16)}]
    for number, lora in enumerate(loras):
        write_adapter(models / f"lora{number}", lora)
    run(
        models,
        "sources:\n  - {source_ft: {adapter: ./lora0}, scaling: 0.25}\n"
        "  - {source_ft: {adapter: ./lora1, base: ./base}}\n",
    )
    base = base_of(models)
    wanted = {
        f"{Q}.weight": base[f"{Q}.weight"] + 0.5 * product(loras[0], Q) + 2 * product(loras[1], Q),
        f"{OUT}.weight": base[f"{OUT}.weight"] + 2 * product(loras[1], OUT),
    }
    check(models, wanted)


def test_the_same_bytes_for_any_workers(models: Path) -> None:
    lora = {**factors(Q, 24, 16), f"{Q}.lora_magnitude_vector": torch.rand(24)}
    for name in ("target", "base"):
        tensors = {**base_tensors(), f"{Q}.weight": made(3000, 500)}
        write_model(models / name, tensors)
    lora = {**factors(Q, 3000, 500), f"{Q}.lora_magnitude_vector": torch.rand(3000)}
    write_adapter(models / "lora", lora, use_dora=True)
    results = []
    for workers in (1, 3):
        run(models, workers=workers, force=True)
        results.append((models / "out" / "model.safetensors").read_bytes())
        (models / "out" / "mergeengine.json").unlink()
    assert results[0] == results[1]


def test_a_tied_head_is_that_of_the_embedding(models: Path) -> None:
    for name in ("target", "base"):
        tensors = base_tensors()
        del tensors["lm_head.weight"]
        write_model(models / name, tensors, tie_word_embeddings=True)
    target = load_file(models / "target" / "model.safetensors")
    write_model(
        models / "target", {**target, "lm_head.weight": made(40, 16)}, tie_word_embeddings=False
    )
    lora = factors(HEAD, 40, 16)
    write_adapter(models / "lora", lora)
    run(models)
    base = load_file(models / "base" / "model.safetensors")
    base["lm_head.weight"] = base["model.embed_tokens.weight"].clone()
    save_file(base, models / "base" / "model.safetensors")
    check(models, {"lm_head.weight": base["lm_head.weight"].double() + 2 * product(lora, HEAD)})


def test_the_base_that_an_adapter_names_is_compared(models: Path) -> None:
    write_adapter(models / "lora", factors(Q, 24, 16), base_model_name_or_path="org/base")
    assert not [n for n in run(models).notes if "trained on" in n]
    write_adapter(models / "lora", factors(Q, 24, 16), base_model_name_or_path="org/other")
    told = [n for n in run(models).notes if "trained on" in n]
    assert told == [
        "./lora: the adapter says that it was trained on 'org/other'; its base here is ./base"
    ]


def test_an_initialisation_that_changes_the_base_is_told(models: Path) -> None:
    write_adapter(models / "lora", factors(Q, 24, 16), init_lora_weights="pissa_niter_4")
    assert [w for w in run(models).warnings if "'pissa_niter_4'" in w]


def test_files_beside_the_weights_are_the_adapters_or_its_bases(models: Path) -> None:
    write_adapter(models / "lora", factors(Q, 24, 16))
    (models / "base" / "tokenizer.json").write_text('{"of": "base"}')
    (models / "base" / "generation_config.json").write_text('{"max_length": 3}')
    run(models)
    assert "base" in (models / "out" / "tokenizer.json").read_text()
    assert "3" in (models / "out" / "generation_config.json").read_text()
    (models / "lora" / "tokenizer.json").write_text('{"of": "lora"}')
    run(models)
    assert "lora" in (models / "out" / "tokenizer.json").read_text()


def test_lock_manifest_and_card_name_the_adapter_and_its_base(models: Path) -> None:
    write_model(models / "other", base_tensors())
    write_adapter(models / "lora", factors(Q, 24, 16))
    run(models, "source_ft: {adapter: ./lora, base: ./other}\n")
    manifest = json.loads((models / "out" / "mergeengine.json").read_text())
    roles = {each["role"]: each["reference"] for each in manifest["models"]}
    assert roles == {
        "target": "./target",
        "source_base": "./base",
        "source_ft": "./lora",
        "base of source_ft": "./other",
    }
    assert all(each["content"].startswith("xxh3:") for each in manifest["models"])
    card = (models / "out" / "README.md").read_text()
    assert "./lora" in card
    assert "./other" in card


def test_another_adapter_is_another_output(models: Path) -> None:
    write_adapter(models / "lora", factors(Q, 24, 16))
    assert run(models).made
    assert not run(models).made
    write_adapter(models / "lora", factors(Q, 24, 16))
    assert run(models).made
    settings = json.loads((models / "lora" / "adapter_config.json").read_text())
    settings["lora_alpha"] = 9
    (models / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    assert run(models).made


BAD: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "kind": ({}, {"peft_type": "IA3"}, "kind 'IA3'; LORA alone is read"),
    "prompt": ({}, {"peft_type": "PROMPT_TUNING"}, "kind 'PROMPT_TUNING'"),
    "no kind": ({}, {"peft_type": None}, "kind None"),
    "rank": ({}, {"r": 0}, "r is 0"),
    "alpha": ({}, {"lora_alpha": "x"}, "lora_alpha is 'x'"),
    "infinite alpha": ({}, {"lora_alpha": float("inf")}, "lora_alpha is inf"),
    "activated": ({}, {"alora_invocation_tokens": [1]}, "no weights are equal to it"),
    "replicated": ({}, {"layer_replication": [[0, 2]]}, "repeats layers"),
    "slow pattern": ({}, {"alpha_pattern": {"(a+)+b": 2}}, "could take very long"),
    "broken pattern": ({}, {"alpha_pattern": {"(": 2}}, "not a regular expression"),
    "pattern of no rank": ({}, {"rank_pattern": {"q_proj": 1.5}}, "is no rank: 1.5"),
    "tokens twice": ({}, {"trainable_token_indices": [3, 3]}, "each once"),
    "another rank": ({}, {"r": 5}, "adapter_config.json says rank 5"),
    "another shape": (factors(Q, 24, 17), {}, "is [24, 16] in the base"),
    "another model": (factors("other.proj", 24, 16), {}, "other.proj: no such weight is there"),
    "half a pair": ({f"{OUT}.lora_A.weight": torch.ones(4, 16)}, {}, "has not both factors"),
    "unknown part": ({f"{OUT}.lora_C.weight": torch.ones(4)}, {}, "no part of an adapter"),
    "convolution": (
        {f"{OUT}.lora_A.weight": torch.ones(4, 2, 3, 3), f"{OUT}.lora_B.weight": torch.ones(2, 4)},
        {},
        "adapters of convolutions",
    ),
    "integers": (
        {
            f"{OUT}.lora_A.weight": torch.ones(4, 16, dtype=torch.int32),
            f"{OUT}.lora_B.weight": torch.ones(16, 4),
        },
        {},
        "of other kinds are not formed",
    ),
    "dora without magnitude": ({}, {"use_dora": True}, "do not agree"),
    "magnitude without dora": ({f"{Q}.lora_magnitude_vector": torch.ones(24)}, {}, "do not agree"),
    "replaced shape": ({f"{OUT}.weight": torch.ones(3, 16)}, {}, "[3, 16] in the adapter"),
    "rows of tokens": (
        {f"{EMBEDDING}.token_adapter.trainable_tokens_delta": torch.ones(2, 16)},
        {"trainable_token_indices": [1]},
        "1 rows of tokens are named, those stored are [2, 16]",
    ),
    "token beyond": (
        {f"{EMBEDDING}.token_adapter.trainable_tokens_delta": torch.ones(1, 16)},
        {"trainable_token_indices": [40]},
        "token 40 of 40",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_formed_is_refused(name: str, models: Path) -> None:
    tensors, config, message = BAD[name]
    write_adapter(models / "lora", {**factors(Q, 24, 16), **tensors}, **config)
    with pytest.raises(CheckpointError) as caught:
        run(models)
    assert message in str(caught.value)
    assert "plan.yaml:" in str(caught.value)
    assert not (models / "out").exists()


def test_a_folder_that_is_no_adapter(models: Path) -> None:
    with pytest.raises(CheckpointError, match="named as an adapter and as a whole model"):
        run(models, "source_ft: {adapter: ./base}\n")
    write_model(models / "other", base_tensors())
    with pytest.raises(CheckpointError, match=r"is no PEFT adapter: expected adapter_config\.json"):
        run(models, "source_ft: {adapter: ./other}\n")
    write_adapter(models / "lora", factors(Q, 24, 16))
    with pytest.raises(CheckpointError, match=r"write `source_ft: \{adapter:"):
        run(models, "source_ft: ./lora\n")
    (models / "lora" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors beside its"):
        run(models, "source_ft: {adapter: ./lora}\n")


def test_an_adapter_in_a_torch_file(models: Path) -> None:
    for name in ("target", "base"):
        write_model(models / name, base_tensors())
    write_adapter(models / "lora", factors(Q, 24, 16))
    plan = "source_ft: {adapter: ./lora}\n"
    made = (run(models, plan).output / "model.safetensors").read_bytes()
    weights = models / "lora" / "adapter_model.safetensors"
    torch.save(load_file(weights), models / "lora" / "adapter_model.bin")
    weights.unlink()
    assert (run(models, plan).output / "model.safetensors").read_bytes() == made


def test_memory_is_what_was_projected(models: Path) -> None:
    for name in ("target", "base"):
        write_model(models / name, {**base_tensors(), f"{Q}.weight": made(4000, 3000)})
    lora = {**factors(Q, 4000, 3000, 64), f"{Q}.lora_magnitude_vector": torch.rand(4000)}
    write_adapter(models / "lora", lora, r=64, use_dora=True)
    memory = run(models, workers=2).report["memory"]
    assert memory["measured_bytes"] <= memory["projected_bytes"] < 2 * 4000 * 3000 * 8


def test_an_adapter_of_a_base_in_8_bits(models: Path) -> None:
    base = load_file(models / "base" / "model.safetensors")
    stored = (base[f"{Q}.weight"].float() * 20).to(torch.float8_e4m3fn)
    scale = torch.rand(3, 2) + 0.5
    base |= {f"{Q}.weight": stored, f"{Q}.weight_scale_inv": scale}
    quantisation = {"quant_method": "fp8", "weight_block_size": [8, 8]}
    write_model(models / "base", base, quantization_config=quantisation)
    lora = factors(Q, 24, 16)
    write_adapter(models / "lora", lora)
    run(models)
    target = load_file(models / "target" / "model.safetensors")
    out = load_file(models / "out" / "model.safetensors")
    wanted = target[f"{Q}.weight"].double() + 2 * product(lora, Q)
    torch.testing.assert_close(out[f"{Q}.weight"].double(), wanted, rtol=2e-7, atol=1e-6)
    out = load_file(models / "out" / "model.safetensors")
    (models / "target").rename(models / "other")
    write_model(models / "target", base, quantization_config=quantisation)
    run(models)
    out = load_file(models / "out" / "model.safetensors")
    values = stored.double() * scale.double().repeat_interleave(8, 0).repeat_interleave(8, 1)
    wanted = values + 2 * product(lora, Q)
    torch.testing.assert_close(out[f"{Q}.weight"].double(), wanted, rtol=2e-7, atol=1e-6)


def test_an_adapter_and_its_base_on_the_hub(empty_hub: StandInHub, models: Path) -> None:
    for name in ("target", "base"):
        files = {file.name: file.read_bytes() for file in (models / name).iterdir()}
        empty_hub.models[f"org/{name}"] = {COMMIT: files}
    lora = factors(Q, 24, 16)
    write_adapter(models / "lora", lora, base_model_name_or_path="org/another")
    files = {file.name: file.read_bytes() for file in (models / "lora").iterdir()}
    empty_hub.models["org/lora"] = {OTHER: files}
    plan = models / "plan.yaml"
    plan.write_text(
        "version: 1\ntarget: org/target\nsource_base: org/base\n"
        "source_ft: {adapter: org/lora}\noutput: {path: ./out, dtype: float32}\n"
    )
    result = mergeengine.run(plan)
    base = base_of(models)
    check(models, {f"{Q}.weight": base[f"{Q}.weight"] + 2 * product(lora, Q)})
    lock = (models / "plan.lock").read_text()
    assert OTHER in lock
    assert COMMIT in lock
    assert any("trained on 'org/another'; its base here is org/base" in w for w in result.warnings)
    assert not mergeengine.run(plan, locked=True).made


def test_what_the_product_does_not_need_is_not_downloaded(
    empty_hub: StandInHub, models: Path
) -> None:
    for name in ("target", "base"):
        write_model(models / name, {**base_tensors(), f"{Q}.weight": made(700, 1000)})
        files = {file.name: file.read_bytes() for file in (models / name).iterdir()}
        empty_hub.models[f"org/{name}"] = {COMMIT: files}
    write_adapter(models / "lora", factors(Q, 700, 1000))
    plan = models / "plan.yaml"
    plan.write_text(
        "version: 1\ntarget: org/target\nsource_base: org/base\n"
        "source_ft: {adapter: ./lora}\noutput: {path: ./out}\n"
    )
    mergeengine.run(plan)
    large = [size for _, name, size in empty_hub.log if name == "model.safetensors"]
    assert sum(size > 1_000_000 for size in large) == 1  # the target's


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**30) | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = (
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora",
    "fan_in_fan_out", "target_parameters", "trainable_token_indices", "base_model_name_or_path",
    "revision", "init_lora_weights", "layer_replication",
)  # fmt: skip


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, JSON)), st.booleans())
def test_a_config_of_anything_is_settings_or_one_error(config: dict[str, Any], whole: bool) -> None:
    usable = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    try:
        settings = read_settings({**config, **usable} if whole else {**usable, **config}, "x")
    except CheckpointError:
        return
    assert settings.rank_of(Q) >= 1
    assert math.isfinite(settings.scale_of(Q))


def test_a_target_in_another_layout_gets_the_product_itself(models: Path) -> None:
    """It has query, key and value one over the other."""
    base, lora = {}, {}
    for part in "qkv":
        module = f"{LAYER}.self_attn.{part}_proj"
        base[f"{module}.weight"] = (torch.randn(16, 16) * 2.0**60).float()
        lora |= factors(module, 16, 16)
    write_model(models / "base", base)
    name = f"{LAYER}.self_attn.qkv_proj.weight"
    target = torch.randn(48, 16)
    write_model(models / "target", {name: target})
    write_adapter(models / "lora", lora)
    run(models)
    out = load_file(models / "out" / "model.safetensors")[name]
    added = [2 * product(lora, f"{LAYER}.self_attn.{part}_proj") for part in "qkv"]
    wanted = target.double() + torch.cat(added)
    torch.testing.assert_close(out.double(), wanted, rtol=2e-7, atol=1e-6)


def test_a_stack_for_a_base_of_single_experts(models: Path) -> None:
    stem = f"{LAYER}.block_sparse_moe.experts"
    shapes = {"w1": (10, 16), "w2": (16, 10), "w3": (10, 16)}
    for model in ("target", "base"):
        tensors = {f"{stem}.{e}.{w}.weight": made(*shapes[w]) for e in range(3) for w in shapes}
        write_model(models / model, tensors)
    experts = f"{LAYER}.mlp.experts"
    lora = {**factors(f"{experts}.base_layer", 20, 16, 12), **factors(experts, 16, 10, 12)}
    names = ["experts.gate_up_proj", "experts.down_proj"]
    write_adapter(models / "lora", lora, target_parameters=names)
    run(models)
    base, wanted = base_of(models), {}
    for module, parts in ((f"{experts}.base_layer", ("w1", "w3")), (experts, ("w2",))):
        one, two = (lora[f"{module}.lora_{x}.weight"].double() for x in "AB")
        added = 2 * torch.einsum("ore,eri->eoi", two.view(-1, 4, 3), one.view(3, 4, -1))
        for expert in range(3):
            rows = added[expert].chunk(len(parts))
            for part, own in zip(parts, rows, strict=True):
                name = f"{stem}.{expert}.{part}.weight"
                wanted[name] = base[name] + own
    check(models, wanted)
