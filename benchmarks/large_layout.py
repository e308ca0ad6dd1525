"""``python -m benchmarks.large_layout``: merge a model with the layout of Llama-3-70B.

Three checkpoints of 141 GB in 30 files each are made, which take little disk
(``benchmarks.large_model``). ``target + 0.8 * (ft - base)`` is iterated block by block without
being written; with ``--to-files`` a plan is run that writes as many layers as fit in half of the
free disk, and the output is read back. Every value is checked. Prints time and peak memory.

A hole that is read fills the page cache as any other part of a file does, and that takes longer
than the merge. In a tmpfs (``--folder /dev/shm``) it does not.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import mergeengine
import mergeengine.execution.executor
from benchmarks.large_model import LAYERS, ROLES, SCALING, SHARD, Check, layout, make, parts
from mergeengine.output.layout import Layout
from mergeengine.workflow.measure import Meter

BENCH = Path(__file__).parents[1] / ".bench"
MOST_OUTPUT = 20_000_000_000
MiB = 1 << 20


def in_memory(folder: Path, placed: Layout) -> None:
    check, checking = Check(placed), 0.0
    began = time.perf_counter()
    with Meter() as meter:
        target, base, ft = (mergeengine.open_checkpoint(folder / role) for role in ROLES)
        for block in (target + SCALING * (ft - base)).blocks():
            came = time.perf_counter()
            check.part(block.name, block.start, block.values)
            checking += time.perf_counter() - came
    seconds = time.perf_counter() - began
    print(
        f"merged in memory in {seconds:.0f} s, of which {checking:.0f} s were checking; "
        f"{meter.peak_bytes / MiB:.1f} MiB at the peak beyond the imports\n{check.end()}"
    )


def to_files(folder: Path, placed: Layout) -> None:
    plan = {
        "version": 1,
        "target": "./target",
        "source_base": "./base",
        "source_ft": "./ft",
        "scaling": SCALING,
        "output": {"path": "./out", "shard_size": SHARD},
    }
    (folder / "plan.yaml").write_text(json.dumps(plan))
    result = mergeengine.run(folder / "plan.yaml", device="cpu")
    report = result.report
    memory = report["memory"]
    print(
        f"merged to files in {report['seconds']['total']:.1f} s: "
        f"{report['bytes']['read'] / 1e9:.1f} GB read, {report['bytes']['written'] / 1e9:.1f} GB "
        f"written, {report['gigabytes_per_second']:.2f} GB/s; "
        f"{memory['measured_bytes'] / MiB:.1f} MiB at the peak beyond the imports, "
        f"{memory['projected_bytes'] / MiB:.1f} MiB projected",
        flush=True,
    )
    began = time.perf_counter()
    print(f"{read_back(result.output, placed)}, read back in {time.perf_counter() - began:.0f} s")


def read_back(output: Path, placed: Layout) -> str:
    """Check what is in the files: what was compared."""
    files = sorted(path.name for path in output.glob("*.safetensors"))
    if files != [shard.name for shard in placed.shards]:
        raise SystemExit(f"the output's files are {', '.join(files)}")
    check = Check(placed)
    for tensor in placed.tensors:
        for start, values in parts(output, tensor.name, files[tensor.shard]):
            check.part(tensor.name, start, values)
    return check.end()


def layers_that_fit(folder: Path) -> int:
    most = min(MOST_OUTPUT, shutil.disk_usage(folder).free // 2)
    least, more = layout(1).size, layout(2).size - layout(1).size
    if most < least:
        raise SystemExit(f"one layer needs {2 * least / 1e9:.1f} GB of free disk")
    return min(LAYERS, 1 + (most - least) // more)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_layout", description=__doc__)
    parser.add_argument("--layers", type=int, help=f"default {LAYERS}, or what fits the disk")
    parser.add_argument("--to-files", action="store_true", help="write the output, then remove it")
    parser.add_argument("--folder", type=Path, default=BENCH, help="where models are made [.bench]")
    options = parser.parse_args()
    parent: Path = options.folder
    parent.mkdir(exist_ok=True)
    layers = options.layers or (layers_that_fit(parent) if options.to_files else LAYERS)
    placed = layout(layers)
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        for role in ROLES:
            make(folder, role, placed)
        taken = sum(512 * path.stat().st_blocks for path in folder.rglob("*.safetensors"))
        print(
            f"{layers} layers: three models of {placed.size / 1e9:.1f} GB in "
            f"{len(placed.shards)} files, on {taken / 1e6:.0f} MB of disk",
            flush=True,
        )
        (to_files if options.to_files else in_memory)(folder, placed)


if __name__ == "__main__":
    main()
