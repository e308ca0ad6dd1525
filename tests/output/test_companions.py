import json
from pathlib import Path

import pytest
from companion_models import EMBEDDING, LLAMA, make_model, tokenizer_json

from mergeengine.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mergeengine.errors import CheckpointError
from mergeengine.lazy.dtypes import BFLOAT16, FLOAT32, DType
from mergeengine.output.companions import CompanionSet, gather_companions

Tensors = dict[str, tuple[DType, tuple[int, ...]]]
WEIGHTS: Tensors = {EMBEDDING: (BFLOAT16, (8, 4))}
TOKENIZER = {
    "tokenizer.json": tokenizer_json(["<s>", "a", "</s>"]),
    "tokenizer_config.json": {"eos_token": "</s>"},
}


def gather(
    target: Checkpoint, source_ft: Checkpoint | None = None, tensors: Tensors = WEIGHTS, **chosen
) -> CompanionSet:
    source_ft = source_ft or target
    models = {"tokenizer": source_ft, "config": target, "generation_config": source_ft}
    return gather_companions(target=target, tensors=tensors, **models | chosen)


def contents(found: CompanionSet) -> dict[str, bytes]:
    read = {}
    for file in found.files:
        with file.open() as stream:
            read[file.name] = stream.read()
        assert len(read[file.name]) == file.size
    return read


def config_of(found: CompanionSet) -> dict:
    return json.loads(contents(found)["config.json"])


# --- config.json ---------------------------------------------------------------------------


def test_config_is_the_targets_key_for_key(tmp_path):
    config = {"zeta": 1e-05, **LLAMA, "rope_scaling": {"factor": 8.0}, "inf": float("inf")}
    target = make_model(tmp_path / "t", config=config)
    source = make_model(tmp_path / "s", config={**LLAMA, "rope_scaling": None})
    found = gather(target, source)
    assert contents(found)["config.json"] == (json.dumps(config, indent=2) + "\n").encode()
    assert found == gather(target, source)


def test_config_can_be_that_of_another_model(tmp_path):
    target = make_model(tmp_path / "t")
    source = make_model(tmp_path / "s", config={**LLAMA, "mark": "source"})
    assert config_of(gather(target, source, config=source))["mark"] == "source"


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("told", ["float16", "torch.float16"])
def test_dtype_becomes_the_one_most_elements_have(tmp_path, key, told):
    base = {k: v for k, v in LLAMA.items() if k != "torch_dtype"}
    target = make_model(tmp_path / "t", config={**base, key: told})
    mixed = {EMBEDDING: (FLOAT32, (8, 4)), "a": (BFLOAT16, (2, 2)), "b": (BFLOAT16, (1, 3))}
    found = gather(target, tensors=mixed)
    assert config_of(found)[key] == "float32"
    assert f"config.json: {key} {told} → float32" in found.notes
    assert set(config_of(found)) == set(target.config)


def test_dtype_that_is_right_keeps_its_spelling(tmp_path):
    target = make_model(tmp_path / "t", config={**LLAMA, "torch_dtype": "torch.bfloat16"})
    assert config_of(gather(target))["torch_dtype"] == "torch.bfloat16"


def test_dtype_of_nested_configs(tmp_path):
    config = {
        **LLAMA,
        "text_config": {"dtype": "float32", "rope_parameters": {"dtype": "int4"}},
        "vision_config": {"dtype": "float32"},
        "audio_config": {"dtype": "float16"},
    }
    target = make_model(tmp_path / "t", config=config)
    mixed = {EMBEDDING: (BFLOAT16, (8, 4)), "vision.weight": (FLOAT32, (2, 2))}
    written = config_of(gather(target, tensors=mixed))
    assert written["text_config"]["dtype"] == "bfloat16"  # what most elements have
    assert written["vision_config"]["dtype"] == "float32"  # a dtype that is there
    assert written["audio_config"]["dtype"] == "bfloat16"  # a dtype that no tensor has
    assert written["text_config"]["rope_parameters"] == {"dtype": "int4"}


def test_dtype_that_is_not_told_is_not_added(tmp_path):
    target = make_model(tmp_path / "t", config={"architectures": ["X"], "dtype": None})
    assert config_of(gather(target)) == target.config


def test_vocab_size_follows_the_rows(tmp_path):
    config = {**LLAMA, "text_config": {"vocab_size": 8}}
    target = make_model(tmp_path / "t", config=config)
    written = config_of(gather(target, tensors={EMBEDDING: (BFLOAT16, (12, 4))}))
    assert written["vocab_size"] == written["text_config"]["vocab_size"] == 12
    assert config_of(gather(target))["vocab_size"] == 8


def test_vocab_size_keeps_its_distance_from_the_rows(tmp_path):
    # Moshi's embedding has one row more than its vocabulary.
    target = make_model(tmp_path / "t", config={**LLAMA, "vocab_size": 7})
    assert config_of(gather(target))["vocab_size"] == 7
    grown = gather(target, tensors={EMBEDDING: (BFLOAT16, (12, 4))})
    assert config_of(grown)["vocab_size"] == 11


def test_local_path_of_the_training_run_is_dropped(tmp_path):
    nested = {"_name_or_path": "/home/me", "hidden_size": 4}
    config = {**LLAMA, "_name_or_path": "/home/me/llama", "text_config": nested}
    target = make_model(tmp_path / "t", config=config)
    assert b"/home/me" not in contents(gather(target))["config.json"]
    assert target.config["_name_or_path"] == "/home/me/llama"  # the checkpoint is untouched


def test_missing_architectures_are_a_warning(tmp_path):
    target = make_model(tmp_path / "t", config={"model_type": "llama"})
    assert any("architectures" in text for text in gather(target).warnings)
    assert gather(make_model(tmp_path / "u")).warnings == ()


def test_single_file_has_no_companions(tmp_path):
    make_model(tmp_path / "t", TOKENIZER)
    target = open_checkpoint(tmp_path / "t" / "model.safetensors")
    found = gather(target)
    assert found.files == ()
    assert any("has no config.json" in note for note in found.notes)


# --- tokenizer -----------------------------------------------------------------------------

SET = {
    **TOKENIZER,
    "special_tokens_map.json": {},
    "added_tokens.json": {},
    "vocab.json": {"a": 0},
    "merges.txt": "#version",
    "vocab.txt": "a",
    "spiece.model": b"\0",
    "tokenizer.model": b"\0",
    "tokenizer.model.v3": b"\0",
    "sentencepiece.bpe.model": b"\0",
    "source.spm": b"\0",
    "qwen.tiktoken": "a",
    "tekken.json": {},
    "normalizer.json": {},
    "chat_template.json": {},
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "preprocessor_config.json": {},
    "processor_config.json": {},
    "video_preprocessor_config.json": {},
}
NEVER = {
    "training_args.bin": b"\x80",
    "optimizer.pt": b"\x80",
    "scheduler.pt": b"\x80",
    "pytorch_model.bin": b"\x80",
    "model.onnx": b"\0",
    "model-q4.gguf": b"\0",
    "tf_model.h5": b"\0",
    "flax_model.msgpack": b"\0",
    "consolidated.pth": b"\0",
    "trainer_state.json": {},
    "pytorch_model.bin.index.json": {},
    "README.md": "# hello",
    ".gitattributes": "*",
    "mergeengine.json": {},
    "run.py": "print('never copied without an auto_map')",
    "original/tokenizer.model": b"\0",
    "original/LICENSE": "text",
    "additional_chat_templates/notes.txt": "text",
}


def test_every_tokenizer_file_and_nothing_else_is_copied(tmp_path):
    config = {**LLAMA, "eos_token_id": None}
    model = make_model(tmp_path / "t", {**SET, **NEVER}, config=config)
    found = contents(gather(model))
    assert set(found) == {*SET, "config.json"}
    for name in SET:
        assert found[name] == (tmp_path / "t" / name).read_bytes()


def test_tokenizer_set_comes_whole_from_source_ft(tmp_path):
    target = make_model(
        tmp_path / "t", {**TOKENIZER, "merges.txt": "target", "special_tokens_map.json": {}}
    )
    source = make_model(tmp_path / "s", {**TOKENIZER, "chat_template.jinja": "source"})
    found = gather(target, source)
    assert set(contents(found)) == {*TOKENIZER, "chat_template.jinja", "config.json"}
    assert any("tokenizer files of" in note and "/s:" in note for note in found.notes)
    assert found.warnings == ()


def test_tokenizer_falls_back_to_the_target(tmp_path):
    target = make_model(tmp_path / "t", TOKENIZER)
    source = make_model(tmp_path / "s")
    found = gather(target, source)
    assert set(TOKENIZER) <= set(contents(found))
    assert f"{tmp_path / 's'} has no tokenizer" in found.notes
    assert found.warnings == ()


def test_template_without_its_tokenizer_is_not_mixed_in(tmp_path):
    target = make_model(tmp_path / "t", {**TOKENIZER, "chat_template.jinja": "target"})
    source = make_model(tmp_path / "s", {"chat_template.jinja": "source"})
    found = gather(target, source)
    assert contents(found)["chat_template.jinja"] == b"target"
    assert any("not copied" in text and "chat_template.jinja" in text for text in found.warnings)


def test_no_tokenizer_anywhere_is_a_note(tmp_path):
    found = gather(make_model(tmp_path / "t"), make_model(tmp_path / "s"))
    assert "no model has a tokenizer: none is written" in found.notes
    assert found.warnings == ()


def test_image_processor_alone_is_a_set(tmp_path):
    target = make_model(tmp_path / "t", {"preprocessor_config.json": {"size": 1}})
    source = make_model(tmp_path / "s", {"preprocessor_config.json": {"size": 2}})
    assert contents(gather(target, source))["preprocessor_config.json"] == b'{"size": 2}'


def test_processor_that_only_the_target_has_is_a_warning(tmp_path):
    target = make_model(tmp_path / "t", {**TOKENIZER, "preprocessor_config.json": {}})
    source = make_model(tmp_path / "s", TOKENIZER)
    found = gather(target, source)
    assert "preprocessor_config.json" not in contents(found)
    assert any("preprocessor_config.json" in text for text in found.warnings)
    assert gather(target, source, tokenizer=target).warnings == ()
    both = make_model(tmp_path / "b", {**TOKENIZER, "preprocessor_config.json": {}})
    assert gather(target, both).warnings == ()


def test_tokenizer_beyond_the_embedding_is_a_warning(tmp_path):
    larger = tokenizer_json(["<s>", "a", "</s>"], {"<new>": 8})
    target = make_model(tmp_path / "t", TOKENIZER)
    source = make_model(tmp_path / "s", {**TOKENIZER, "tokenizer.json": larger})
    (warning,) = gather(target, source).warnings
    assert "ids up to 8 (the target's has 3)" in warning
    assert "only 8 rows" in warning
    assert gather(target, source, tensors={EMBEDDING: (BFLOAT16, (9, 4))}).warnings == ()


def test_tokenizer_as_large_as_the_targets_is_no_warning(tmp_path):
    # Gemma 3 1B: its own tokenizer has an id beyond its embedding.
    larger = {**TOKENIZER, "tokenizer.json": tokenizer_json(["<s>", "a", "</s>"], {"<new>": 8})}
    target, source = make_model(tmp_path / "t", larger), make_model(tmp_path / "s", larger)
    assert gather(target, source).warnings == ()


# --- generation config and ends of sequence ---------------------------------------------------


def test_generation_config_with_several_ends_survives(tmp_path):
    generation = '{"eos_token_id": [2, 7,\n 5], "temperature": 0.60}'
    target = make_model(tmp_path / "t", {"generation_config.json": {"eos_token_id": 2}})
    source = make_model(tmp_path / "s", {"generation_config.json": generation})
    found = gather(target, source)
    assert contents(found)["generation_config.json"] == generation.encode()
    assert f"generation_config.json of {tmp_path / 's'}" in found.notes


def test_generation_config_falls_back_to_the_target(tmp_path):
    target = make_model(tmp_path / "t", {"generation_config.json": {"eos_token_id": 2}})
    source = make_model(tmp_path / "s")
    found = gather(target, source)
    assert contents(found)["generation_config.json"] == b'{"eos_token_id": 2}'
    assert any(f"(the target), because {tmp_path / 's'} has none" in note for note in found.notes)


def test_no_generation_config_is_a_note(tmp_path):
    found = gather(make_model(tmp_path / "t"))
    assert "no model has a generation_config.json: none is written" in found.notes
    assert "generation_config.json" not in contents(found)


LLAMA_3 = {
    "tokenizer.json": tokenizer_json(["a"], {"<|end_of_text|>": 128001, "<|eot_id|>": 128009}),
    "tokenizer_config.json": {"eos_token": {"content": "<|eot_id|>"}},
}


@pytest.mark.parametrize(
    ("config", "generation", "named"),
    [
        (128001, [128001, 128008, 128009], None),
        (128001, 128009, "not at 128001"),
        (128001, 128001, "not at 128009"),
        ([128001, 128009], [128009, 128001], None),
        (128009, None, None),  # without a generation config, the config's ids count
        (128001, None, "not at 128009"),
        (None, 128001, "not at 128009"),
        (128001, {}, "not at 128001, 128009"),  # a generation config that names no end
        (None, None, None),  # an encoder: it does not generate
    ],
)
def test_ends_of_sequence_agree(tmp_path, config, generation, named):
    files = dict(LLAMA_3)
    if generation is not None:
        content = generation if generation == {} else {"eos_token_id": generation}
        files["generation_config.json"] = content
    model = make_model(tmp_path / "m", files, config={**LLAMA, "eos_token_id": config})
    warnings = gather(model, tensors={EMBEDDING: (BFLOAT16, (128256, 1))}).warnings
    assert len(warnings) == (named is not None)
    if named:
        assert named in warnings[0]
        assert f"tokenizer ({tmp_path / 'm'}) <|eot_id|> = 128009" in warnings[0]
        assert config is None or f"config.json ({tmp_path / 'm'}) 128001" in warnings[0]


def test_end_of_sequence_of_a_text_config(tmp_path):
    config = {"architectures": ["X"], "text_config": {"eos_token_id": [1, 106]}}
    model = make_model(
        tmp_path / "m", {"generation_config.json": {"eos_token_id": [1]}}, config=config
    )
    (warning,) = gather(model).warnings
    assert "1, 106" in warning
    assert "not at 106" in warning


# --- custom code ------------------------------------------------------------------------------

AUTO_MAP = {"auto_map": {"AutoConfig": "configuration_x.C", "AutoModel": "modeling_x.M"}}
CODE = {
    "configuration_x.py": "raise SystemExit('executed')",
    "modeling_x.py": "from .helper import f\nraise SystemExit('executed')",
    "helper.py": "raise SystemExit('executed')",
}


def test_custom_code_is_copied_with_what_lies_beside_it(tmp_path):
    target = make_model(tmp_path / "t", CODE, config={**LLAMA, **AUTO_MAP})
    source = make_model(tmp_path / "s", {"modeling_x.py": "source"}, config={**LLAMA, **AUTO_MAP})
    found = gather(target, source)
    assert {n: c.decode() for n, c in contents(found).items() if n.endswith(".py")} == CODE
    assert any("copied, not executed" in note for note in found.notes)
    assert found.warnings == ()


def test_custom_code_that_is_missing_is_a_warning(tmp_path):
    target = make_model(tmp_path / "t", config={**LLAMA, **AUTO_MAP})
    (warning,) = gather(target).warnings
    assert "configuration_x.py, modeling_x.py" in warning


def test_custom_code_of_another_repository_is_a_note(tmp_path):
    auto_map = {"auto_map": {"AutoModel": "org/code--modeling_x.M", "AutoConfig": 3}}
    found = gather(make_model(tmp_path / "t", CODE, config={**LLAMA, **auto_map}))
    assert any("org/code" in note for note in found.notes)
    assert not any(name.endswith(".py") for name in contents(found))


def test_code_of_the_tokenizer_comes_with_the_tokenizer(tmp_path):
    target = make_model(tmp_path / "t", TOKENIZER)
    source = make_model(
        tmp_path / "s",
        {
            **TOKENIZER,
            "tokenizer_config.json": {
                "eos_token": "</s>",
                "auto_map": {"AutoTokenizer": ["tokenization_x.Slow", None]},
            },
            "tokenization_x.py": "from .bytes_x import table\nfrom .absent import y\n",
            "bytes_x.py": "import json\n",
            "modeling_x.py": "not the tokenizer's",
        },
    )
    found = gather(target, source)
    code = {name for name in contents(found) if name.endswith(".py")}
    assert code == {"tokenization_x.py", "bytes_x.py"}
    assert not any(n.endswith(".py") for n in contents(gather(target, source, tokenizer=target)))


def test_code_of_the_tokenizer_of_an_ordinary_model(tmp_path):
    tokenizer_config = {"eos_token": "</s>", "auto_map": {"AutoTokenizer": "tokenization_x.T"}}
    files = {**TOKENIZER, "tokenizer_config.json": tokenizer_config, "tokenization_x.py": "x"}
    model = make_model(tmp_path / "m", {**files, "train.py": "not needed"})
    code = [name for name in contents(gather(model)) if name.endswith(".py")]
    assert code == ["tokenization_x.py"]


@pytest.mark.parametrize("differs", [True, False])
def test_of_two_files_of_one_name_the_configs_model_wins(tmp_path, differs):
    target = make_model(tmp_path / "t", {**TOKENIZER, **CODE}, config={**LLAMA, **AUTO_MAP})
    tokenizer_config = {"eos_token": "</s>", "auto_map": {"AutoTokenizer": "helper.T"}}
    helper = "other" if differs else CODE["helper.py"]
    source = make_model(
        tmp_path / "s",
        {**TOKENIZER, "tokenizer_config.json": tokenizer_config, "helper.py": helper},
    )
    found = gather(target, source)
    assert contents(found)["helper.py"].decode() == CODE["helper.py"]
    assert len(found.warnings) == differs
    assert not differs or "helper.py differs" in found.warnings[0]


# --- licences, names, malformed files ---------------------------------------------------------


def test_licences_are_the_targets(tmp_path):
    licences = dict.fromkeys(
        ["LICENSE", "LICENSE.txt", "LICENCE-MODEL", "License.md", "NOTICE", "USE_POLICY.md"], "text"
    )
    others = dict.fromkeys(["license_check.py", "licensed.txt", "MY_LICENSE"], "text")
    target = make_model(tmp_path / "t", {**licences, **others})
    source = make_model(tmp_path / "s", {"LICENSE": "source", "LICENSE_SOURCE": "source"})
    found = contents(gather(target, source))
    assert set(found) == {*licences, "config.json"}
    assert found["LICENSE"] == b"text"


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "generation_config.json",
    ],
)
@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"a": 1, ',
        "",
        "{" * 100_000,
        b"\xff\xfe{}",
        "version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
    ],
    ids=["open", "list", "cut", "empty", "deep", "binary", "lfs"],
)
def test_malformed_json_is_an_error_that_names_the_file(tmp_path, name, content):
    model = make_model(tmp_path / "m", {**TOKENIZER, name: content})
    with pytest.raises(CheckpointError) as raised:
        gather(model)
    assert name in str(raised.value)
    assert str(tmp_path / "m") in str(raised.value)
    if isinstance(content, str) and "lfs" in content:
        assert "git lfs pull" in str(raised.value)


@pytest.mark.parametrize("depth", [600, 900, 100_000])
def test_deeply_nested_config_is_an_error(tmp_path, depth):
    config = f'{{"architectures": ["X"], "a": {"[" * depth}{"]" * depth}}}'
    with pytest.raises(CheckpointError, match=r"config\.json.* nested too deeply"):
        gather(make_model(tmp_path / "m", {"config.json": config}, config=None))


def test_json_of_absurd_size_is_not_read(tmp_path):
    model = make_model(tmp_path / "m", {"generation_config.json": {}})
    with (tmp_path / "m" / "generation_config.json").open("r+b") as file:
        file.truncate(65 * 2**20)  # sparse
    with pytest.raises(CheckpointError, match=r"generation_config\.json is larger than 64 MiB"):
        gather(model)


def test_link_out_of_the_folder_is_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    model = make_model(tmp_path / "m")
    (tmp_path / "m" / "merges.txt").symlink_to(secret)
    with pytest.raises(CheckpointError, match="outside"):
        gather(model)


def test_names_with_control_characters_are_not_copied(tmp_path):
    model = make_model(tmp_path / "m", {"LICENSE-\x1b[31m": "a", "a\\b.tiktoken": "a", **TOKENIZER})
    assert set(contents(gather(model))) == {*TOKENIZER, "config.json"}


# --- what transformers writes -------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved_by_transformers(tmp_path_factory) -> tuple[Path, Path]:
    """A base and its fine-tune with another end of sequence and chat templates."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("transformers")
    tokens = {"<s>": 0, "<|end|>": 1, "a": 2, "b": 3, "<|eot|>": 4}
    for name, eos, template in (
        ("base", "<|end|>", None),
        ("ft", "<|eot|>", {"default": "{{ messages[0]['content'] }}", "tools": "{{ tools }}"}),
    ):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=8,
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                eos_token_id=1,
            )
        )
        ends = [1, 4] if name == "ft" else 1
        model.generation_config = GenerationConfig(eos_token_id=ends)
        model.save_pretrained(folder / name)
        inner = Tokenizer(models.WordLevel(tokens, unk_token="a"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=inner, eos_token=eos, bos_token="<s>", chat_template=template
        )
        tokenizer.save_pretrained(folder / name)
    return folder / "base", folder / "ft"


def test_transformers_loads_the_set(tmp_path, saved_by_transformers):
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    target, source = map(open_checkpoint, saved_by_transformers)
    tensors = {name: (FLOAT32, stored.shape) for name, stored in target.tensors.items()}
    found = gather(target, source, tensors)
    assert found.warnings == ()
    for name, content in contents(found).items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "b a"}], tokenize=False)
    assert chat == "b a"
    assert tokenizer.get_chat_template("tools") == "{{ tools }}"
    assert tokenizer.eos_token_id == 4
    assert AutoConfig.from_pretrained(tmp_path).architectures == ["LlamaForCausalLM"]
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [1, 4]


def test_transformers_mixture_is_warned_of(saved_by_transformers):
    target, source = map(open_checkpoint, saved_by_transformers)
    tensors = {name: (FLOAT32, stored.shape) for name, stored in target.tensors.items()}
    (warning,) = gather(target, source, tensors, generation_config=target).warnings
    assert "<|eot|> = 4" in warning
    assert "not at 4" in warning
