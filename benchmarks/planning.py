"""``python -m benchmarks.planning``: how long does a merge take before the first byte is read?

Llama-3-70B (723 tensors) and mixtures of experts of 25,000, 50,000 and 100,000 tensors are made as
sparse files (holes take no disk), three models each, in a temporary folder that is removed before
the next. Prints the seconds of ``prepare``: headers, binding, graph, schedule and layout.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.large_model import LAYERS, ROLES, SHARD, described, layout, write_sparse
from mergeengine.output.layout import lay_out

PLAN = """\
version: 1
name: planning
target: ./target
source_base: ./base
source_ft: ./ft
scaling: 0.8
output: {path: ./merged}
"""
HIDDEN, INNER, VOCABULARY, EXPERTS = 2048, 1024, 32000, 512
PROJECTIONS = {
    "gate_proj": (INNER, HIDDEN),
    "up_proj": (INNER, HIDDEN),
    "down_proj": (HIDDEN, INNER),
}


def make_experts(folder: Path, tensors: int, shard_size: int = SHARD) -> None:
    """A sparse mixture of experts of so many tensors, embedding, norm and head among them."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (VOCABULARY, HIDDEN)}
    for number in range(tensors - 3):
        expert, projection = divmod(number, len(PROJECTIONS))
        layer, expert = divmod(expert, EXPERTS)
        name = list(PROJECTIONS)[projection]
        shapes[f"model.layers.{layer}.mlp.experts.{expert}.{name}"] = PROJECTIONS[name]
    shapes.update({"model.norm": (HIDDEN,), "lm_head": (VOCABULARY, HIDDEN)})
    write_sparse(folder, lay_out(described(shapes), shard_size))


def make_plan(folder: Path, make: Callable[[Path], None]) -> Path:
    """Three models and the plan that merges them; the plan's path."""
    for name in ROLES:
        make(folder / name)
    path = folder / "plan.yaml"
    path.write_text(PLAN)
    return path


def seconds(make: Callable[[Path], None]) -> float:
    """How long ``prepare`` takes, once everything is imported."""
    from mergeengine.plan.load import load_plan
    from mergeengine.workflow.prepare import prepare

    with tempfile.TemporaryDirectory() as folder:
        path = make_plan(Path(folder), make)
        began = time.perf_counter()
        prepare(load_plan(path))
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=__doc__)
    parser.add_argument("--tensors", type=int, nargs="*", default=[25_000, 50_000, 100_000])
    counts = parser.parse_args().tensors
    seconds(partial(write_sparse, placed=layout(1)))  # the imports
    print(f"Llama-3-70B: {seconds(partial(write_sparse, placed=layout(LAYERS))):.2f} s")
    for count in counts:
        print(f"{count} tensors: {seconds(partial(make_experts, tensors=count)):.2f} s")


if __name__ == "__main__":
    main()
