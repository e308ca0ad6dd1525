"""``python -m benchmarks.large_layout``: merge the layout of Llama-3-70B in memory, block by block.

Three checkpoints of 141 GB are made as sparse files (holes take no disk), and
``target + 0.8 * (ft - base)`` is iterated without being written. Prints time and peak memory.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

HIDDEN, INNER, KEYS, VOCABULARY = 8192, 28672, 1024, 128256
SHARD = 4_700_000_000
LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
    "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
}


def make(folder: Path, layers: int) -> None:
    """A sparse checkpoint: headers and an index are real, every value is zero."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        shapes.update({f"model.layers.{layer}.{name}": shape for name, shape in LAYER.items()})
    shapes.update({"model.norm": (HIDDEN,), "lm_head": (VOCABULARY, HIDDEN)})
    write_sparse(folder, shapes, SHARD)


def write_sparse(folder: Path, shapes: dict[str, tuple[int, ...]], shard_size: int) -> None:
    """A sparse checkpoint of these weights, and the least of a config."""
    from mergeengine.lazy.dtypes import BFLOAT16
    from mergeengine.output.layout import INDEX, lay_out

    layout = lay_out([(f"{n}.weight", BFLOAT16, shape) for n, shape in shapes.items()], shard_size)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    index = layout.index()
    if index is not None:
        (folder / INDEX).write_bytes(index)
    for shard in layout.shards:
        with (folder / shard.name).open("wb") as file:
            file.write(shard.header)
            file.truncate(shard.size)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_layout", description=__doc__)
    parser.add_argument("--layers", type=int, default=80)
    layers = parser.parse_args().layers
    import mergeengine
    import mergeengine.execution.executor
    from mergeengine.workflow.measure import Meter

    with tempfile.TemporaryDirectory() as folder:
        for name in ("target", "base", "ft"):
            make(Path(folder, name), layers)
        began, values = time.perf_counter(), 0
        with Meter() as meter:
            target, base, ft = (
                mergeengine.open_checkpoint(Path(folder, name)) for name in ("target", "base", "ft")
            )
            for block in (target + 0.8 * (ft - base)).blocks():
                values += block.values.numel()
        seconds = time.perf_counter() - began
        print(
            f"{values / 1e9:.2f} G values in {seconds:.0f} s, "
            f"{meter.peak_bytes / 2**20:.1f} MiB at the peak beyond the imports"
        )


if __name__ == "__main__":
    main()
