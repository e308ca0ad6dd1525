"""The same weights under other names and in other layouts, both ways, as transformers writes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from exact import Tensors, expected, stored
from models import agreed, load, logits, merge, perturb, random_inputs, rewrite, save_llama
from tiny_architectures import ARCHITECTURES

import mergeengine
from mergeengine.errors import CheckpointError, PlanError

ROLES = ("base", "ft", "target")
Change = Callable[[Tensors], None]


def renamed(change: Callable[[str], str]) -> Change:
    def apply(tensors: Tensors) -> None:
        items = {change(name): tensor for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(items)

    return apply


def check_against(folder: Path, ways: dict[str, Tensors]) -> Tensors:
    """The output is the oracle of the three models as they were before anything was renamed."""
    oracle = expected(ways["target"], [(ways["base"], ways["ft"], lambda name: 0.7)])
    return agreed(stored(folder / "out"), oracle)


def save_all(folder: Path, architecture: str = "llama", **options: object) -> dict[str, Tensors]:
    """Three versions of a model, and their tensors under the names of the target."""
    torch.manual_seed(0)
    model = ARCHITECTURES[architecture].build()
    for seed, role in enumerate(ROLES):
        perturb(model, seed, 0.2)
        model.to(torch.bfloat16).save_pretrained(folder / role, **options)
        model.to(torch.float32)
    return {role: stored(folder / role) for role in ROLES}


def without_prefix(name: str) -> str:
    return name.removeprefix("model.")


def wrapped(name: str) -> str:
    return f"language_model.{name}"


@pytest.mark.parametrize("change", [without_prefix, wrapped])
@pytest.mark.parametrize("roles", [("ft",), ("base", "ft"), ("target",)])
def test_prefixes(tmp_path: Path, change: Callable[[str], str], roles: tuple[str, ...]) -> None:
    ways = save_all(tmp_path)
    for role in roles:
        rewrite(tmp_path / role, renamed(change))
    result = merge(tmp_path, scaling=0.7)
    if roles == ("target",):
        ways = {role: {change(n): t for n, t in of.items()} for role, of in ways.items()}
    check_against(tmp_path, ways)
    assert any("tensors have another prefix in ./ft" in note for note in result.notes)


@pytest.mark.parametrize("packed", [("target",), ("base", "ft"), ("ft",)])
@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_stacked_and_single_experts(tmp_path: Path, name: str, packed: tuple[str, ...]) -> None:
    single = save_all(tmp_path, name)
    for role in packed:
        model = ARCHITECTURES[name].auto_class.from_pretrained(tmp_path / role)
        for file in (tmp_path / role).glob("*.safetensors"):
            file.unlink()
        model.save_pretrained(tmp_path / role, save_original_format=False)
    ways = {role: stored(tmp_path / role) for role in ROLES}
    assert set(single["target"]) != {*ways[packed[0]]}
    merge(tmp_path, scaling=0.7)
    if "target" in packed:  # the oracle in the layout of the output
        for role in ("base", "ft"):
            model = ARCHITECTURES[name].auto_class.from_pretrained(tmp_path / role)
            model.save_pretrained(tmp_path / "packed" / role, save_original_format=False)
            ways[role] = stored(tmp_path / "packed" / role)
        check_against(tmp_path, ways)
    else:
        check_against(tmp_path, single)
    inputs = random_inputs(ARCHITECTURES[name])
    assert logits(load(ARCHITECTURES[name], tmp_path / "out"), inputs).isfinite().all()


def fuse(tensors: Tensors) -> None:
    """Query, key and value one over the other, gate and up as well."""
    for joint, parts in (("qkv_proj", ("q", "k", "v")), ("gate_up_proj", ("gate", "up"))):
        for name in [name for name in tensors if name.endswith(f".{parts[0]}_proj.weight")]:
            stem = name.removesuffix(f"{parts[0]}_proj.weight")
            pieces = [tensors.pop(f"{stem}{part}_proj.weight") for part in parts]
            tensors[f"{stem}{joint}.weight"] = torch.cat(pieces)


@pytest.mark.parametrize("roles", [("ft",), ("target",), ("base", "ft")])
def test_projections_one_over_the_other(tmp_path: Path, roles: tuple[str, ...]) -> None:
    ways = save_all(tmp_path)
    for role in roles:
        rewrite(tmp_path / role, fuse)
    result = merge(tmp_path, scaling=0.7)
    if "target" in roles:
        for tensors in ways.values():
            fuse(tensors)
    check_against(tmp_path, ways)
    assert any("tensors are laid out otherwise in" in note for note in result.notes)


def test_a_headless_bert_and_one_with_a_head(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        vocab_size=40, max_position_embeddings=12,
    )  # fmt: skip
    torch.manual_seed(0)
    masked = transformers.BertForMaskedLM(config)
    plain = transformers.BertModel(config, add_pooling_layer=False)
    for seed, (role, model) in enumerate((("base", masked), ("ft", plain), ("target", masked))):
        perturb(model, seed, 0.2)
        model.save_pretrained(tmp_path / role)
    merge(tmp_path, scaling=0.7, on_missing="keep_target")
    base, ft, target = (stored(tmp_path / role) for role in ROLES)
    named = {f"bert.{name}": tensor for name, tensor in ft.items()}
    base = {name: tensor for name, tensor in base.items() if name in named}
    agreed(stored(tmp_path / "out"), expected(target, [(base, named, lambda name: 0.7)]))


def test_rename_and_layer_map(tmp_path: Path) -> None:
    """Layers 0 and 1 of the sources, under other names, for layers 0, 2 and 3 of the target."""
    for number, role in enumerate(("base", "ft")):
        save_llama(tmp_path / role, number)
        rewrite(tmp_path / role, renamed(lambda n: n.replace("model.layers.", "blocks.")))
    torch.manual_seed(5)
    ARCHITECTURES["llama"].build(num_hidden_layers=4).to(torch.bfloat16).save_pretrained(
        tmp_path / "target"
    )
    rename = [{"match": "blocks.*", "to": "model.layers.*"}]
    layers = {"0": "0", "2-3": "1"}
    merge(tmp_path, scaling=0.7, rename=rename, layer_map=layers)
    base, ft, target = (stored(tmp_path / role) for role in ROLES)
    sources = []
    for tensors in (base, ft):
        named = {n: t for n, t in tensors.items() if "blocks" not in n}
        for layer, source in ((0, 0), (2, 1), (3, 1)):
            named |= {
                n.replace(f"blocks.{source}.", f"model.layers.{layer}."): t
                for n, t in tensors.items()
                if f"blocks.{source}." in n
            }
        sources.append(named)
    oracle = expected(target, [(*sources, lambda name: 0.7)])
    agreed(stored(tmp_path / "out"), oracle)


def test_without_a_layer_map_other_depths_are_refused(tmp_path: Path) -> None:
    for number, role in enumerate(("base", "ft")):
        save_llama(tmp_path / role, number)
    ARCHITECTURES["llama"].build(num_hidden_layers=3).save_pretrained(tmp_path / "target")
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        merge(tmp_path, scaling=0.7)


@pytest.mark.parametrize(
    ("rename", "sentence"),
    [
        ([{"match": "modl.layers.*", "to": "x.*"}], r"fits no tensor of \./base"),
        ([{"regex": r"\.(q|k)_proj", "to": ".same"}], "are both called"),
    ],
)
def test_renames_that_are_slips(tmp_path: Path, rename: list, sentence: str) -> None:
    save_all(tmp_path)
    with pytest.raises((CheckpointError, PlanError), match=sentence):
        merge(tmp_path, rename=rename)


def test_arithmetic_on_checkpoints_finds_them_too(tmp_path: Path) -> None:
    ways = save_all(tmp_path)
    rewrite(tmp_path / "ft", fuse)
    rewrite(tmp_path / "base", renamed(without_prefix))
    target, base, ft = (mergeengine.open_checkpoint(tmp_path / r) for r in ("target", "base", "ft"))
    (target + 0.7 * ((target * 0.0 + ft) - base)).save(tmp_path / "out")
    check_against(tmp_path, ways)
