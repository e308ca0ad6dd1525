"""The same plan over the same inputs gives the same bytes, however and wherever it is run."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from lineage import Lineage, hashes, make_lineage, weights, write_model, write_plan

from mergeengine.output.writer import ShardWriter
from mergeengine.workflow.run import run

MiB = 1 << 20
PLAN: dict[str, Any] = {
    "scaling": 0.7,
    "masks": [
        {"match": "*layernorm*", "scale": 0.0},
        {"layers": 1, "scale": 0.5},
    ],
    "output": {"path": "./out", "shard_size": "4MB"},
}


@pytest.fixture(scope="module")
def lineage(tmp_path_factory: pytest.TempPathFactory) -> Lineage:
    return make_lineage(tmp_path_factory.mktemp("lineage"), **PLAN)


@pytest.fixture(scope="module")
def reference(lineage: Lineage) -> dict[str, str]:
    output = lineage.folder / "reference"
    run(lineage.plan, output=output, device="cpu", workers=1)
    return hashes(output)


MACHINES: list[dict[str, Any]] = [
    *({"block_chunks": chunks, "workers": 2} for chunks in (1, 2, 3, 4)),
    *({"workers": workers} for workers in (1, 2, 5)),
    *({"memory": memory * MiB} for memory in (60, 80, 4096)),
    {"block_chunks": 1, "workers": 5, "memory": 512 * MiB},
]


@pytest.mark.parametrize("machine", MACHINES, ids=str)
def test_whatever_the_machine(
    machine: dict[str, Any],
    lineage: Lineage,
    reference: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks end in an order that is another in every run."""
    write = ShardWriter.write

    def jittered(self: ShardWriter, *args: Any) -> None:
        time.sleep(random.random() / 500)
        write(self, *args)

    monkeypatch.setattr(ShardWriter, "write", jittered)
    run(lineage.plan, output=tmp_path / "out", device="cpu", **machine)
    assert hashes(tmp_path / "out") == reference


def test_wherever_it_lies(
    lineage: Lineage, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another path of the same structure, other times, another working directory."""
    elsewhere = tmp_path / "a" / "b c"
    for role in ("target", "base", "ft"):
        shutil.copytree(lineage.folder / role, elsewhere / role)
        for path in (elsewhere / role).iterdir():
            os.utime(path, (1_000_000_000, 1_000_000_000))
    write_plan(elsewhere, **PLAN)
    monkeypatch.chdir(elsewhere)
    run("plan.yaml", device="cpu")
    assert hashes(elsewhere / "out") == reference
    run(lineage.plan, device="cpu")
    assert (elsewhere / "plan.lock").read_bytes() == (lineage.folder / "plan.lock").read_bytes()


def test_whatever_the_environment(
    lineage: Lineage, reference: dict[str, str], tmp_path: Path
) -> None:
    code = (
        "import sys; from mergeengine.workflow.run import run; "
        "run(sys.argv[1], output='out', device='cpu')"
    )
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "4711",
        "TZ": "Asia/Tokyo",
        "LC_ALL": "C",
        "COLUMNS": "10",
    }
    command = [sys.executable, "-c", code, lineage.plan]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, umask=0o077)
    assert hashes(tmp_path / "out") == reference


NAMES = (
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.input_layernorm.weight",
    "model.layers.1.mlp.up_proj.weight",
    "lm_head.weight",
)
SHARDINGS = {
    "each its own": {role: [[name] for name in NAMES] for role in ("target", "base", "ft")},
    "in another order": {role: [NAMES[3:], NAMES[:3]] for role in ("target", "base", "ft")},
    "crosswise": {
        "target": [NAMES[::2], NAMES[1::2]],
        "base": [NAMES[4:], NAMES[2:4], NAMES[:2]],
    },
}


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_however_the_inputs_are_cut(sharding: str, lineage: Lineage, tmp_path: Path) -> None:
    for role, tensors in lineage.tensors.items():
        write_model(tmp_path / role, tensors, shards=SHARDINGS[sharding].get(role, ()))
    write_plan(tmp_path, **PLAN)
    run(tmp_path / "plan.yaml", device="cpu")
    reference = lineage.folder / "reference weights"
    if not reference.exists():
        run(lineage.plan, output=reference, device="cpu")
    assert weights(tmp_path / "out") == weights(reference)


@pytest.mark.parametrize("shard_size", ["1", "100KB", "3MB", "5GB"])
def test_however_the_output_is_cut(shard_size: str, lineage: Lineage, tmp_path: Path) -> None:
    plan = write_plan(
        lineage.folder, f"{shard_size}.yaml", **{**PLAN, "output": {"shard_size": shard_size}}
    )
    run(plan, output=tmp_path / "out", device="cpu")
    run(lineage.plan, output=tmp_path / "usual", device="cpu")
    assert weights(tmp_path / "out") == weights(tmp_path / "usual")


def test_digests_of_values_do_not_depend_on_the_cut(lineage: Lineage, tmp_path: Path) -> None:
    """The manifest's digest of a tensor speaks of its values alone."""
    from mergeengine.output.manifest import read_manifest

    found = []
    for number, size in enumerate(["100KB", "5GB"]):
        plan = write_plan(lineage.folder, "cut.yaml", **{**PLAN, "output": {"shard_size": size}})
        run(plan, output=tmp_path / str(number), device="cpu", block_chunks=1 + 3 * number)
        manifest = read_manifest(tmp_path / str(number))
        assert manifest is not None
        found.append(manifest.tensors)
    assert found[0] == found[1]
