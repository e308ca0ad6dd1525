"""Every example of the plan language in the README is run, not only read."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergeengine.workflow.run import run

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
EMBEDDING = "model.embed_tokens.weight"
SHAPES = {
    EMBEDDING: (32010, 2),
    "lm_head.weight": (32010, 2),
    "model.norm.weight": (4,),
    **{f"model.layers.{n}.input_layernorm.weight": (4,) for n in range(32)},
    **{f"model.layers.{n}.self_attn.q_proj.weight": (4, 4) for n in range(32)},
    **{f"model.layers.{n}.mlp.up_proj.weight": (6, 4) for n in range(32)},
}


def table(head: str) -> list[list[str]]:
    """The cells of each row of a table."""
    rows = README.split(head)[1].split("\n\n")[0].strip().splitlines()[1:]
    return [
        [cell.strip().replace("\0", "|") for cell in row.replace("\\|", "\0").split("|")[1:-1]]
        for row in rows
    ]


def code(cell: str) -> list[str]:
    return re.findall(r"`(.*?)`", cell)


SCALINGS = [text for _, example in table("| form | example |") for text in code(example)]
MASKS = [text for cells in table("| action | keeps or does |") for text in code(cells[0])]
SELECTORS = [
    (key, value)
    for names, _, examples in table("| condition | chooses | example |")
    for key in code(names)
    for value in code(examples)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    generator = torch.Generator().manual_seed(0)
    ids = {"<s>": 0, "<|im_start|>": 1, "42": 2}
    for name in ("target", "base", "ft", "other"):
        (folder / name).mkdir()
        tensors = {n: torch.randn(shape, generator=generator) for n, shape in SHAPES.items()}
        save_file(tensors, folder / name / "model.safetensors")
        text = json.dumps(
            {"added_tokens": [], "model": {"type": "BPE", "vocab": ids, "merges": []}}
        )
        (folder / name / "tokenizer.json").write_text(text)
    save_file({n: torch.rand(shape) for n, shape in SHAPES.items()}, folder / "mask.safetensors")
    return folder


def made(folder: Path, text: str) -> dict[str, torch.Tensor]:
    plan = folder / "plan.yaml"
    plan.write_text(
        "version: 1\ntarget: ./target\noutput: {path: ./out}\n"
        "selections: {upper_mlp: {layers: '16-', kind: mlp}}\n" + text
    )
    (folder / "plan.lock").unlink(missing_ok=True)
    run(plan, device="cpu", workers=1, force=True)
    return load_file(folder / "out" / "model.safetensors")


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(one[name], other[name]) for name in SHAPES)


PAIR = "source_base: ./base\nsource_ft: ./ft\n"
TWO = (
    "source_base: ./base\nsources:\n  - {name: first, source_ft: ./ft}\n"
    "  - {name: NAME, source_ft: ./other}\n"
)


@pytest.fixture(scope="module")
def plain(models: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {sources: made(models, sources) for sources in (PAIR, TWO)}


def test_there_are_examples() -> None:
    assert len(SCALINGS) > 10
    assert len(MASKS) > 10
    assert len(SELECTORS) > 10


@pytest.mark.parametrize("text", SCALINGS)
def test_scalings(text: str, models: Path, plain: dict) -> None:
    assert differ(made(models, f"{PAIR}{text}\n"), plain[PAIR])


@pytest.mark.parametrize("text", MASKS)
def test_masks(text: str, models: Path, plain: dict) -> None:
    sources = TWO if "NAME" in text else PAIR
    entry = f"match: '*embed*', {text}" if re.match("rows|tokens", text) else text
    if text == "keep: source_ft":
        entry += ", match: '*mlp*'"
    assert differ(made(models, f"{sources}masks: [{{{entry}}}]\n"), plain[sources])


@pytest.mark.parametrize(("key", "value"), SELECTORS)
def test_selectors(key: str, value: str, models: Path, plain: dict) -> None:
    entry = value if value.startswith("{not") else f"{{{key}: {value}}}"
    found = made(models, f"{PAIR}masks: [{{all: [{entry}], scale: 0}}]\n")
    assert differ(found, plain[PAIR])
