"""The fine-tuning script on a tiny random Llama: it learns, repeats itself, and serves a chain."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from chain_files import digests, write_chain
from command_line import Command
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from mergeengine.recipes import finetune

TEMPLATE = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<a>{% endif %}"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """More would wait for each other on so small a model."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    letters = [*"abcdefghijklmnopqrstuvwxyz<>= "]
    vocabulary = {letter: number for number, letter in enumerate(["[unk]", "[end]", *letters])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[unk]", eos_token="[end]", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_data(folder: Path) -> Path:
    lines = [
        {"prompt": "ab=", "completion": "ba"},
        {"text": "abc"},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
    ]
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return path


def test_examples_train_on_what_the_model_is_to_say(base, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    examples = finetune.read_examples(write_data(tmp_path), tokenizer, 100)
    trained = ["".join(tokenizer.decode([t]) for t in labels if t >= 0) for _, labels in examples]
    assert trained == ["ba[end]", "abc[end]", "y"]
    assert [len(ids) for ids, _ in examples] == [6, 4, 8]


@pytest.mark.parametrize(
    ("line", "told"),
    [("{", "JSONDecodeError"), ('{"txt": "a"}', "KeyError"), ('{"prompt": "a"}', "completion")],
)
def test_a_wrong_line_is_named(base, tmp_path, line, told):
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"text": "ab"}}\n{line}\n')
    with pytest.raises(finetune.DataError, match=rf"data.jsonl:2: expected .*{told}"):
        finetune.read_examples(path, tokenizer, 100)
    path.write_text("\n")
    with pytest.raises(finetune.DataError, match="nothing to train on"):
        finetune.read_examples(path, tokenizer, 100)


def loss(folder: Path, data: Path) -> float:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total = 0.0
    for ids, labels in finetune.read_examples(data, tokenizer, 100):
        total += model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
    return total


def tuned(base: Path, data: Path, output: Path, *more: str) -> Path:
    given = ["--data", str(data), "--epochs", "8", "--batch-size", "2", "--learning-rate", "0.05"]
    finetune.main([str(base), str(output), *given, *more])
    return output


def test_it_learns_and_gives_the_same_again(base, tmp_path):
    data = write_data(tmp_path)
    one = tuned(base, data, tmp_path / "one")
    two = tuned(base, data, tmp_path / "two", "--accumulate", "1")
    assert digests(one) == digests(two)
    assert loss(one, data) < 0.5 * loss(base, data)
    assert AutoModelForCausalLM.from_pretrained(one).dtype == torch.bfloat16
    other = tuned(base, data, tmp_path / "other", "--steps", "1", "--accumulate", "2")
    assert loss(one, data) < loss(other, data) < loss(base, data)


@pytest.mark.filterwarnings("ignore")  # of PEFT about itself
def test_adapters_are_merged_in(base, tmp_path):
    pytest.importorskip("peft")
    data = write_data(tmp_path)
    one = tuned(base, data, tmp_path / "one", "--lora", "4")
    assert loss(one, data) < loss(base, data)
    names = set(AutoModelForCausalLM.from_pretrained(one).state_dict())
    assert names == set(AutoModelForCausalLM.from_pretrained(base).state_dict())


def test_in_a_chain(base, here: Path, run: Command):
    write_data(here)
    command = ["{python}", "-m", "mergeengine.recipes.finetune", "{base_model}", "{output}"]
    source = str(Path(finetune.__file__).parents[2])
    step = {
        "command": [*command, "--data", "data.jsonl", "--epochs", 2, "--learning-rate", 0.01],
        "files": ["data.jsonl"],
        "env": {"PYTHONPATH": source, "OMP_NUM_THREADS": 1},
    }
    plan = {"target": "base_model", "source_base": "base_model", "source_ft": "tuned"}
    steps = [{"id": "tuned", "run": step}, {"id": "carried", "plan": {**plan, "scaling": 0.5}}]
    models = {"base_model": str(base)}
    write_chain(here, {"version": 1, "models": models, "steps": steps})
    ended = run()
    assert ended.made == ["tuned", "carried"], ended.err
    assert "tuned | step 1 of 2: loss" in ended.err
    assert run().made == []
