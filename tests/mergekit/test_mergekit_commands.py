"""Wherever a command takes a plan, it takes a configuration."""

import json
from pathlib import Path

import jinja2
import numpy as np
import pytest
from command_line import Command
from safetensors.numpy import save_file
from tiny_llamas import make, read

import mergeengine
from mergeengine.errors import PlanError
from mergeengine.mergekit.methods import METHODS, WEIGHT
from mergeengine.mergekit.recognition import is_config, is_several
from mergeengine.methods.registry import methods
from mergeengine.values.chat_templates import TEMPLATES
from mergeengine.workflow.reading import is_chain, load_chain, load_plan, parse_plan

CONFIG = """\
merge_method: linear
models:
  - model: ./a
    parameters: {weight: 3}
  - model: ./b
    parameters: {weight: [{filter: mlp, value: [1, 0]}, {value: 1}]}
dtype: float32
"""
SEVERAL = """\
name: half
merge_method: linear
models:
  - {model: ./a, parameters: {weight: 1}}
  - {model: ./b, parameters: {weight: 1}}
dtype: float32
---
merge_method: passthrough
models: [{model: half, parameters: {scale: 2}}]
dtype: float32
"""


Models = dict[str, dict[str, np.ndarray]]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    """Two tiny models in the working directory."""
    monkeypatch.chdir(tmp_path)
    return {name: make(tmp_path / name, layers=2) for name in "ab"}


def write(text: str, name: str = "config.yml") -> Path:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_from_the_first_look_to_the_output(models: Models, command: Command) -> None:
    write(CONFIG)
    assert command("validate", "config.yml").out == "config.yml: OK\n"
    planned = command("plan", "config.yml", "-o", "out", "--format", "json")
    assert (planned.code, planned.json["decision"]) == (0, "make")
    explained = command("explain", "config.yml", "*.1.mlp.up_proj.weight").out
    assert "config.yml:4:26" in explained
    assert 'match: "*mlp*"' in explained
    assert "config.yml:6:27" in explained
    assert command("run", "config.yml", "-o", "out").code == 0
    found = read(Path("out"))
    for name, a in models["a"].items():
        weight = (1.0 - float(".1." in name)) if "mlp" in name else 1.0
        expected = (3 * a.astype(np.float64) + weight * models["b"][name]) / (3 + weight)
        assert np.allclose(found[name], expected, atol=1e-6)
    again = command("run", "config.yml", "-o", "out")
    assert "up to date" in again.err
    assert command("verify", "out").code == 0
    assert command("lock", "config.yml").code == 0
    assert command("lock", "config.yml", "--check").code == 0
    assert json.loads(Path("out/tokenizer_config.json").read_text()) == {"of": "a"}


def test_values_are_set_and_swept(models: Models, command: Command) -> None:
    write(CONFIG)
    done = command("run", "config.yml", "-o", "out", "--set", "parameters.normalize=false")
    assert done.code == 0
    name = "model.norm.weight"
    expected = 3 * models["a"][name] + models["b"][name]
    assert np.allclose(read(Path("out"))[name], expected, atol=1e-5)
    swept = command("run", "config.yml", "-o", "x", "--sweep", "sources.0.scaling=1,2")
    assert swept.code == 0
    assert len(swept.out.split()) == 2


def test_unmatched_filters_are_warned_of(models: Models, command: Command) -> None:
    write(CONFIG.replace("filter: mlp", "filter: block_sparse_moe"))
    done = command("run", "config.yml", "-o", "out")
    assert done.code == 0
    assert "warning: config.yml:6:27: this rule of `scaling` matches no tensor" in done.err


def test_several(models: Models, command: Command) -> None:
    write(SEVERAL)
    assert command("validate", "config.yml").out == "config.yml: OK\n"
    assert "half" in command("chain", "graph", "config.yml").out
    assert command("chain", "status", "config.yml").code == 0
    assert command("run", "config.yml", "-o", "result/here").code == 0
    found = read(Path("result/here"))
    for name, a in models["a"].items():
        assert np.allclose(found[name], a + models["b"][name], atol=1e-6)
    assert not Path("out/half").exists()  # computed inside
    assert command("run", "config.yml").code == 0
    assert Path("out/merged/model.safetensors").exists()


def test_a_plan_and_no_chain(models: Models) -> None:
    one, several = write(CONFIG), write(SEVERAL, "several.yml")
    assert (is_chain(one), is_chain(several), is_chain("nowhere.yml")) == (False, True, False)
    with pytest.raises(PlanError, match="several configurations: a chain, no plan"):
        load_plan(several)
    with pytest.raises(PlanError, match="one configuration: a plan, no chain"):
        load_chain(one)


def test_from_python(models: Models) -> None:
    path = write(CONFIG)
    plan = mergeengine.load_plan(path)
    assert (plan.name, plan.method, plan.text) == ("config", "linear", CONFIG)
    mergeengine.run(path, output="out")
    merged = mergeengine.compile_plan(path)
    assert {tensor.name for tensor in merged.blocks()} == set(models["a"])


# --- where models lie -----------------------------------------------------------------------


def references(text: str, file: str) -> list[str]:
    return [source.source_ft.text for source in parse_plan(text, file).sources]


def test_paths_without_a_beginning(models: Models) -> None:
    """Beside the configuration, else in the working directory, else on the hub."""
    Path("configs/org/near").mkdir(parents=True)
    Path("org/far").mkdir(parents=True)
    Path("org/near").mkdir(parents=True)
    names = ("org/near", "org/far", "org/hub@main", "./a", "/models/x", "../configs/org")
    listed = "".join(f"  - {{model: {name}, parameters: {{weight: 1}}}}\n" for name in names)
    text = f"merge_method: linear\nmodels:\n{listed}"
    found = references(text, "configs/c.yml")
    assert found == [
        "./org/near", "../org/far", "org/hub@main", "../a", "/models/x", "../configs/org",
    ]  # fmt: skip


def test_a_converted_plan_elsewhere(models: Models, command: Command) -> None:
    write(CONFIG)
    Path("plans").mkdir()
    assert command("convert", "config.yml", "-o", "plans/p.yaml").err == "wrote plans/p.yaml\n"
    assert "model: ../a" in Path("plans/p.yaml").read_text()
    assert "model: ./a" in command("convert", "config.yml").out
    found = load_plan("plans/p.yaml").sources[0].source_ft.path
    assert found == load_plan("config.yml").sources[0].source_ft.path


def test_convert_writes_over_nothing(models: Models, command: Command) -> None:
    write(CONFIG)
    write("mine\n", "plan.yaml")
    refused = command("convert", "config.yml", "-o", "plan.yaml")
    assert (refused.code, Path("plan.yaml").read_text()) == (5, "mine\n")
    assert "--force replaces it" in refused.err
    assert command("convert", "config.yml", "-o", "plan.yaml", "--force").code == 0
    assert command("validate", "plan.yaml").code == 0
    assert "no mergekit configuration" in command("convert", "plan.yaml").err
    assert "cannot be written" in command("convert", "config.yml", "-o", "no/where.yaml").err


def test_convert_with_values(models: Models, command: Command) -> None:
    write(CONFIG)
    shown = command("convert", "config.yml", "--set", "output.shard_size=1GB").out
    assert "shard_size: 1GB" in shown


def test_adapters(models: Models, command: Command) -> None:
    random = np.random.default_rng(1)
    name = "model.layers.1.mlp.up_proj.weight"
    rows, columns = models["a"][name].shape
    down = random.standard_normal((2, columns)).astype(np.float32)
    up = random.standard_normal((rows, 2)).astype(np.float32)
    Path("lora").mkdir()
    prefix = f"base_model.model.{name.removesuffix('.weight')}"
    save_file(
        {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up},
        "lora/adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}
    Path("lora/adapter_config.json").write_text(json.dumps(config))
    change = 2 * up.astype(np.float64) @ down
    write("merge_method: passthrough\nmodels: [{model: a+lora}]\ndtype: float32\n")
    assert command("run", "config.yml", "-o", "whole").code == 0
    write(
        "merge_method: task_arithmetic\nbase_model: a\ndtype: float32\n"
        "models: [{model: ./a+./lora, parameters: {weight: 0.5}}]\n"
    )
    assert command("run", "config.yml", "-o", "half").code == 0
    for folder, weight in (("whole", 1), ("half", 0.5)):
        found = read(Path(folder))
        assert np.allclose(found[name], models["a"][name] + weight * change, atol=1e-5)
        assert all((found[each] == models["a"][each]).all() for each in found if each != name)


# --- telling them apart ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "config", "several"),
    [
        ("merge_method: ties\n", True, False),
        ("'merge_method': ties\n", True, False),
        ('{"merge_method": "ties"}', True, False),
        ("---\nmerge_method: ties\n", True, False),
        ("merge_method: ties\n---\nmerge_method: slerp\n", True, True),
        ("merge_method: ties\n---\n# nothing\n", True, False),
        ("version: 1\nmerge_method: ties\n", False, False),
        ("# merge_method: ties\nversion: 1\n", False, False),
        ("parameters:\n  merge_method: 1\n", False, False),
    ],
)
def test_recognition(text: str, config: bool, several: bool) -> None:
    assert (is_config(text), is_several(text)) == (config, several)


def test_every_method_and_parameter_is_one_of_plans() -> None:
    for name, method in METHODS.items():
        options = {option.name for option in methods()[name].options}
        for parameter in method.parameters:
            known = parameter.native in (*options, WEIGHT)
            assert known or parameter.name in ("rescale", "nuslerp_flatten", "nuslerp_row_wise")
        assert methods()[name].weighted == any(p.native == WEIGHT for p in method.parameters)


# --- chat templates -------------------------------------------------------------------------

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Bye."},
]
SAID = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello?<|im_end|>\n"
    "<|im_start|>assistant\nHi.<|im_end|>\n<|im_start|>user\nBye.<|im_end|>\n"
    "<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHello?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHi.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "alpaca": "Be brief.\n\n### Instruction:\nHello?\n\n### Response:\nHi.</s>\n\n"
    "### Instruction:\nBye.\n\n### Response:\n",
    "mistral": "<s>[INST] Be brief.\n\nHello? [/INST] Hi.</s>[INST] Bye. [/INST]",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates(name: str) -> None:
    template = jinja2.Environment().from_string(TEMPLATES[name])
    given = {"messages": TALK, "bos_token": "<s>", "eos_token": "</s>"}
    assert template.render(**given, add_generation_prompt=True) == SAID[name]


def test_a_chosen_chat_template(models: Models, command: Command) -> None:
    config = {"chat_template": "old {{ x }}", "of": "a"}
    Path("a/tokenizer_config.json").write_text(json.dumps(config))
    Path("b/chat_template.jinja").write_text("new {{ x }}\n")
    templates = {
        "auto": "old {{ x }}",
        "chatml": TEMPLATES["chatml"],
        '"{{ 1 }} $x"': "{{ 1 }} $x",
    }
    for number, (written, expected) in enumerate(templates.items()):
        write(f"{CONFIG}chat_template: {written}\n")
        assert command("run", "config.yml", "-o", f"out{number}").code == 0
        assert Path(f"out{number}/chat_template.jinja").read_text() == expected
        left = json.loads(Path(f"out{number}/tokenizer_config.json").read_text())
        assert left == {"of": "a"}


def test_the_commonest_chat_template(models: Models, command: Command) -> None:
    make(Path("c"), layers=2)
    for name, text in (("a", "one"), ("b", "{{ two }}"), ("c", "{{ two }}\n")):
        Path(name, "chat_template.jinja").write_text(text)
    config = CONFIG.replace("dtype", "  - {model: ./c, parameters: {weight: 1}}\ndtype")
    write(f"{config}chat_template: auto\n")
    assert command("run", "config.yml", "-o", "out").code == 0
    assert Path("out/chat_template.jinja").read_text() == "{{ two }}"
