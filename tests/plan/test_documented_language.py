"""The language as the README tells it: every key is there, and every example of a table runs."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mergeengine
from mergeengine.plan import mask_actions, parameters, schema, selecting, vocabularies
from mergeengine.plan.forms import Keys, written_keys

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def between(start: str, end: str) -> str:
    assert README.count(start) == 1, start
    return start + README.split(start)[1].split(end)[0]


KEYS = between("| key | meaning | default |", "\n\n")
SELECTORS = between("**Selectors** choose", "**Scaling**")
SCALING = between("**Scaling** may", "To try several values")
MASKS = between("### Masks of elements", "\n## ")
STACKS = between("### Stacks of layers", "\n### ")
VOCABULARIES = between("### Vocabularies that differ", "\n## ")
RENAMING = between("### The same weights under other names", "**Selectors**")

PASSAGES: dict[type[Keys], str] = {
    schema.PlanKeys: between("## A plan", "### Adapters"),
    schema.OutputKeys: KEYS,
    schema.NumericsKeys: KEYS,
    schema.SourceKeys: next(row for row in KEYS.splitlines() if row.startswith("| `sources`")),
    schema.DtypeRuleKeys: SELECTORS
    + next(row for row in KEYS.splitlines() if row.startswith("| `output.dtype`")),
    schema.AdapterKeys: between("### Adapters", "\n### "),
    schema.StackKeys: STACKS,
    schema.SlabKeys: STACKS,
    schema.RenameKeys: RENAMING,
    schema.MaskKeys: SELECTORS + MASKS,
    vocabularies.VocabularyKeys: VOCABULARIES,
    vocabularies.TokenKeys: VOCABULARIES,
    vocabularies.OriginKeys: VOCABULARIES,
    selecting.SelectorKeys: SELECTORS,
    parameters.RuleKeys: SELECTORS + SCALING,
    parameters.ScalingRuleKeys: SELECTORS + SCALING,
    parameters.OutsideKeys: SCALING,
    parameters.OverDepthKeys: SCALING,
    parameters.PointsKeys: SCALING,
    parameters.CurveKeys: SCALING,
    parameters.ShallowDeepKeys: SCALING,
    parameters.LayersKeys: SCALING,
    parameters.MeasuredKeys: SCALING,
}


def models(of: type[Keys] = Keys) -> set[type[Keys]]:
    inside = {each for one in of.__subclasses__() for each in {one} | models(one)}
    return {each for each in inside if each.__module__.startswith("mergeengine.plan")}


def written(key: str, passage: str) -> bool:
    """Whether code shows it as a key: alone, before a colon or a dot, or in a list in braces."""
    parts = re.split(r"```.*\n", passage)
    code = [*parts[1::2], *re.findall(r"`([^`\n]+)`", "".join(parts[::2]))]
    as_key = rf"(?:^|[{{,])[ -]*(?:output\.|numerics\.)?{key} *(?:[:,.}}]|$)"
    return any(re.search(as_key, each, re.MULTILINE) for each in code)


def test_every_mapping_of_a_plan_has_its_passage() -> None:
    assert models() == set(PASSAGES)


@pytest.mark.parametrize("model", list(PASSAGES), ids=lambda model: model.__name__)
def test_every_key_is_documented(model: type[Keys]) -> None:
    assert [key for key in written_keys(model) if not written(key, PASSAGES[model])] == []


def test_words_of_prose_are_no_documentation() -> None:
    assert written("to", "`{match: a, to: b}`")
    assert written("of", "```yaml\nof: x\n```")
    assert not written("to", "up to `source_ft`")
    assert not written("source_ft", "`keep: source_ft`")


def rows(table: str) -> list[list[str]]:
    """The cells of each row, where an escaped bar is a bar."""
    (lines,) = re.findall(r"^(?:\|---)+\|\n((?:\|.*\n)+)", table, re.MULTILINE)
    return [
        [cell.replace("\0", "|") for cell in line.replace("\\|", "\0").split("|")[1:-1]]
        for line in lines.splitlines()
    ]


def spans(cell: str) -> list[str]:
    return re.findall("`(.*?)`", cell)


LAYERS = 33  # some beyond those that the examples name
ACTIONS = [each for row in rows(MASKS) for each in spans(row[0])]
SCALINGS = [each for row in rows(SCALING) for each in spans(row[1]) if each.startswith("scaling:")]
CONDITIONS = [
    f"{{{key}: {example}}}"
    for row in rows(SELECTORS)
    for example in spans(row[2])
    for key in spans(row[0])
]
EMBEDDING = "model.embed_tokens.weight"
HEAD = "version: 1\ntarget: ./target\nsource_base: ./base\n"
PLAIN = HEAD + "source_ft: ./ft\n"
TWO = HEAD.replace("source_base: ./base\n", "sources:\n") + "".join(
    f"  - {{name: {name}, source_base: ./base, source_ft: ./{folder}}}\n"
    for name, folder in (("NAME", "other"), ("mine", "ft"))
)
Tensors = dict[str, np.ndarray]


def shapes() -> dict[str, tuple[int, ...]]:
    inside = {
        "self_attn.q_proj": (4, 4),
        "self_attn.k_proj": (4, 4),
        "mlp.up_proj": (6, 4),
        "input_layernorm": (4,),
    }
    return {
        EMBEDDING: (32008, 4),
        **{
            f"model.layers.{layer}.{name}.weight": shape
            for layer in range(LAYERS)
            for name, shape in inside.items()
        },
        "model.norm.weight": (4,),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four versions of a model, a mask of its MLPs, and what the examples name."""
    root = tmp_path_factory.mktemp("language")
    random = np.random.default_rng(5)
    base = {name: random.normal(size=shape) for name, shape in shapes().items()}
    vocab = {f"t{number}": number for number in range(128)} | {"42": 128, "<|im_start|>": 129}
    words = {"type": "BPE", "vocab": vocab, "merges": []}
    tokenizer = {"version": "1.0", "added_tokens": [], "model": words}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": LAYERS,
        "hidden_size": 4,
        "vocab_size": 32008,
    }
    for model, scale in (("base", 0.0), ("target", 0.1), ("ft", 0.3), ("other", 0.3)):
        (root / model).mkdir()
        made = {}
        for name, values in base.items():
            change = random.normal(size=values.shape) * scale
            change.flat[1] *= 1e-5  # a change that `above` leaves out
            made[name] = (values + change).astype(np.float32)
        save_file(made, root / model / "model.safetensors")
        (root / model / "config.json").write_text(json.dumps(config))
        (root / model / "tokenizer.json").write_text(json.dumps(tokenizer))
    mask = {
        name: random.integers(0, 2, size=values.shape).astype(bool)
        for name, values in base.items()
        if ".mlp." in name
    }
    save_file(mask, root / "mask.safetensors")
    return root


def merged(folder: Path, text: str) -> Tensors:
    plan = folder / "plan.yaml"
    plan.write_text(f"{text}name: language\n", encoding="utf-8")
    mergeengine.run(plan, output=folder / "out", device="cpu", force=True)
    return load_file(folder / "out" / "model.safetensors")


@cache
def tensors(model: Path) -> Tensors:
    return load_file(model / "model.safetensors")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Tensors:
    return merged(folder, PLAIN)


def changed(one: Tensors, other: Tensors) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if one[name].tobytes() != other[name].tobytes()}


def test_the_tables_are_read() -> None:
    assert {each.split(":")[0] for each in ACTIONS} == set(mask_actions.ACTIONS)
    assert len(SCALINGS) > 10
    assert {key for row in rows(SELECTORS) for key in spans(row[0])} == selecting.SELECTING


def expected(action: str, folder: Path, name: str) -> np.ndarray:
    """What the table says of one tensor, in float64."""
    target, base, ft, other = (
        tensors(folder / model)[name].astype(np.float64)
        for model in ("target", "base", "ft", "other")
    )
    delta, shift = ft - base, target - base
    size = np.abs(delta)
    kept: np.ndarray | float
    match action.split(":")[0]:
        case "keep":
            return target if action.endswith("target") else ft
        case "orthogonal_to":
            return target + delta - (delta * shift).sum() / (shift * shift).sum() * shift
        case "rows":
            kept = np.arange(len(delta))[:, None] < 32000
        case "tokens":
            ids = [129, 5, *range(100, 121), 128]
            kept = np.isin(np.arange(len(delta)), ids)[:, None]
        case "file":
            kept = load_file(folder / "mask.safetensors")[name]
        case "above":
            kept = size > 1e-4
        case "top":
            kept = size >= np.sort(size, axis=None)[-int(0.2 * size.size)]
        case "bottom":
            kept = size <= np.sort(size, axis=None)[int(0.2 * size.size) - 1]
        case "sign":
            if "NAME" in action:  # whose own delta is added whole
                return target + (other - base) + delta * (delta * (other - base) > 0)
            kept = delta * shift > 0
        case "scale":
            kept = 0.5
        case other_action:
            raise AssertionError(f"no expectation for {other_action}")
    return target + delta * kept


@pytest.mark.parametrize("action", ACTIONS)
def test_the_actions_do_what_their_table_says(action: str, folder: Path, plain: Tensors) -> None:
    where = "*embed_tokens*" if action.startswith(("rows", "tokens")) else "*.mlp.*"
    masks = f"masks: [{{match: '{where}', {action}}}]"
    if "NAME" in action:
        text, plain = TWO.removesuffix("}\n") + f", {masks}}}\n", merged(folder, TWO)
    else:
        text = f"{PLAIN}{masks}\n"
    result = merged(folder, text)
    chosen = {name for name in plain if where.strip("*") in name}
    assert changed(result, plain) == chosen
    if action.startswith("drop"):
        dropped(result, chosen, folder)
        return
    for name in chosen:
        right = expected(action, folder, name)
        np.testing.assert_allclose(result[name], right, rtol=1e-6, atol=1e-7)


def dropped(result: Tensors, chosen: set[str], folder: Path) -> None:
    """A tenth of the elements, by chance, has ten times its delta; all others are the target's."""
    target, base, ft = (tensors(folder / model) for model in ("target", "base", "ft"))
    there = {name: result[name] != target[name] for name in chosen}
    share = sum(map(np.count_nonzero, there.values())) / sum(map(np.size, there.values()))
    assert 0.03 < share < 0.2
    for name, kept in there.items():
        right = target[name] + 10 * (ft[name].astype(np.float64) - base[name])
        np.testing.assert_allclose(result[name][kept], right[kept], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("text", SCALINGS)
def test_the_scalings_run(text: str, folder: Path, plain: Tensors) -> None:
    result = merged(folder, f"{PLAIN}{text}\n")
    assert changed(result, plain)
    target, base, ft = (tensors(folder / model) for model in ("target", "base", "ft"))
    for name, values in result.items():  # whatever the number, it is one number for the tensor
        delta = ft[name].astype(np.float64) - base[name]
        added = values.astype(np.float64) - target[name]
        factor = (added * delta).sum() / (delta * delta).sum()
        assert factor > -1e-6
        np.testing.assert_allclose(added, factor * delta, atol=1e-5)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_selectors_choose(condition: str, folder: Path, plain: Tensors) -> None:
    named = "selections: {upper_mlp: {layers: '16-', kind: mlp}}\n"
    result = merged(folder, f"{PLAIN}{named}masks: [{{all: {condition}, scale: 0}}]\n")
    frozen = set(plain) - changed(result, tensors(folder / "target"))
    assert frozen
    assert changed(result, plain) == frozen != set(plain)
