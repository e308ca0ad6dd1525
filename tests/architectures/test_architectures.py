"""Plans on tiny models of real architectures: every number, and the model that loads."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from exact import Expected, Tensors, double_roundings, expected, layer, stored
from models import Storage, agreed, load, load_weights, logits, merge, random_inputs, save_lineage
from safetensors import safe_open
from tiny_architectures import ARCHITECTURES, Architecture

from mergeengine.workflow.run import RunResult

DTYPES = ("bfloat16", "float16", "mixed", "float32")
OUTPUT_SHARD = 50_000

# Each architecture once, the storages in turn; the first three also in all of them.
DEFAULT = [
    (name, Storage(("bfloat16", "bfloat16", *DTYPES)[number % 6], number % 4 < 2))
    for number, name in enumerate(ARCHITECTURES)
]
EVERY = [
    (name, Storage(dtype, sharded))
    for name in ARCHITECTURES
    for dtype in DTYPES
    for sharded in (False, True)
]
FULLY = ("llama-tied", "deepseek-v3", "jamba")
DEFAULT += [case for case in EVERY if case[0] in FULLY and case not in DEFAULT]
CASES = [
    pytest.param(*case, id=f"{case[0]}-{case[1]}")
    if case in DEFAULT
    else pytest.param(*case, id=f"{case[0]}-{case[1]}", marks=pytest.mark.slow)
    for case in EVERY
]


@dataclass(frozen=True)
class Merged:
    folder: Path
    result: RunResult
    target: Tensors
    output: Tensors
    oracle: dict[str, Expected]

    def double_roundings(self) -> tuple[int, int]:
        """Values that are a neighbour of the oracle's, and values computed, in 16-bit tensors."""
        found = computed = 0
        for name, oracle in self.oracle.items():
            differing = int(double_roundings(self.output[name], oracle).sum())
            if any(oracle.coefficients):
                found += differing
                computed += oracle.rounded.numel() if oracle.rounded.itemsize == 2 else 0
            else:
                assert differing == 0
        return found, computed


Merges = Callable[[str, Storage], Merged]


@pytest.fixture(scope="session")
def merges(tmp_path_factory: pytest.TempPathFactory) -> Merges:
    """The merge of each architecture, made once."""
    made: dict[tuple[str, Storage], Merged] = {}

    def merged(name: str, storage: Storage) -> Merged:
        if (name, storage) not in made:
            made[name, storage] = _merge(ARCHITECTURES[name], storage, tmp_path_factory.mktemp("m"))
        return made[name, storage]

    return merged


def _merge(architecture: Architecture, storage: Storage, folder: Path) -> Merged:
    save_lineage(architecture.build, folder, storage)
    result = merge(
        folder,
        scaling=0.7,
        masks=[{"layers": "0", "scale": 0.0}, {"match": architecture.part, "scale": 0.5}],
        output={"shard_size": OUTPUT_SHARD} if storage.sharded else {},
    )

    def coefficient(name: str) -> float:
        if layer(name) == 0:
            return 0.0
        return 0.7 * 0.5 if fnmatchcase(name, architecture.part) else 0.7

    target = stored(folder / "target")
    oracle = expected(target, [(stored(folder / "base"), stored(folder / "ft"), coefficient)])
    return Merged(folder, result, target, stored(folder / "out"), oracle)


@pytest.mark.parametrize(("name", "storage"), CASES)
def test_every_tensor_is_the_oracle_rounded_once(
    name: str, storage: Storage, merges: Merges
) -> None:
    merged = merges(name, storage)
    assert merged.output.keys() == merged.target.keys()
    losses = "rounding to "  # of so small a change to so small a tensor much may be lost
    assert [text for text in merged.result.warnings if not text.startswith(losses)] == []
    merged.double_roundings()
    ft = stored(merged.folder / "ft")
    kinds = {"frozen": 0, "half": 0, "full": 0, "whole numbers": 0}
    for tensor_name, tensor in merged.output.items():
        target = merged.target[tensor_name]
        if not tensor.is_floating_point():
            kinds["whole numbers"] += 1
            assert torch.equal(tensor, target)
            assert not torch.equal(tensor, ft[tensor_name])
            continue
        (coefficient,) = merged.oracle[tensor_name].coefficients
        kinds[{0.0: "frozen", 0.35: "half", 0.7: "full"}[coefficient]] += 1
        if not coefficient:
            assert torch.equal(tensor, target)
    assert kinds.pop("whole numbers") == (11 if name == "resnet" else 0)
    assert all(kinds.values()), kinds
    dtypes = {tensor.dtype for tensor in merged.output.values() if tensor.is_floating_point()}
    if storage.dtype == "mixed":
        assert dtypes == {torch.bfloat16, torch.float32}
    else:
        assert dtypes == {getattr(torch, storage.dtype)}


@pytest.mark.parametrize(("name", "storage"), CASES)
def test_the_output_loads_and_gives_the_oracles_logits(
    name: str, storage: Storage, merges: Merges, tmp_path: Path
) -> None:
    merged = merges(name, storage)
    architecture = ARCHITECTURES[name]
    weights = agreed(merged.output, merged.oracle)
    result = load(architecture, merged.folder / "out")
    oracle_model = load_weights(
        architecture, merged.folder / "target", weights, tmp_path / "oracle"
    )
    inputs = random_inputs(architecture)
    assert result.dtype == oracle_model.dtype
    found = logits(result, inputs)
    assert torch.equal(found, logits(oracle_model, inputs))
    target = load(architecture, merged.folder / "target")
    assert not torch.equal(found, logits(target, inputs))
    state = oracle_model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in result.state_dict().items())


@pytest.mark.parametrize(("name", "storage"), CASES)
def test_the_files_are_what_the_index_says(name: str, storage: Storage, merges: Merges) -> None:
    merged = merges(name, storage)
    out = merged.folder / "out"
    placed = {}
    for path in out.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            names = list(file.keys())
            sizes = [file.get_tensor(tensor_name).nbytes for tensor_name in names]
        assert len(names) == 1 or sum(sizes) <= OUTPUT_SHARD or not storage.sharded
        assert names
        placed.update(dict.fromkeys(names, path.name))
    index = out / "model.safetensors.index.json"
    if not storage.sharded:
        assert set(placed.values()) == {"model.safetensors"}
        assert not index.exists()
        return
    document = json.loads(index.read_text())
    assert document["weight_map"] == placed
    total = sum(tensor.nbytes for tensor in merged.output.values())
    assert document["metadata"]["total_size"] == total
    count = len(set(placed.values()))
    assert count > 1
    numbered = {f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)}
    assert set(placed.values()) == numbered


def test_double_roundings_are_rare_over_all_architectures(merges: Merges) -> None:
    found = computed = 0
    for name, storage in DEFAULT:
        differing, values = merges(name, storage).double_roundings()
        found += differing
        computed += values
    assert computed > 1_000_000
    assert found / computed < 1e-4
