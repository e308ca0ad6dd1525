"""The layout of Llama-3-70B on little disk: zeros in holes, random values in known windows.

Small tensors are random throughout. A large one has three windows: its start, one across the
boundary of two chunks in its middle, and its end. So a value that is read from, or written to,
another place than its own shows.
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch

from mergeengine.lazy.dtypes import BFLOAT16, DType
from mergeengine.lazy.partition import CHUNK
from mergeengine.output.layout import INDEX, Layout, lay_out

HIDDEN, INNER, KEYS, VOCABULARY = 8192, 28672, 1024, 128256
LAYERS = 80
SHARD = 4_900_000_000  # makes 80 layers the 30 files of the original
ITEM = 2
WINDOW = 4000
ROLES = ("target", "base", "ft")
SCALING = 0.8
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


def layout(layers: int) -> Layout:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        shapes.update({f"model.layers.{layer}.{name}": shape for name, shape in LAYER.items()})
    shapes.update({"model.norm": (HIDDEN,), "lm_head": (VOCABULARY, HIDDEN)})
    return lay_out(described(shapes), SHARD)


def described(shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, DType, tuple[int, ...]]]:
    """Weights of these shapes, as a layout takes them."""
    return [(f"{name}.weight", BFLOAT16, shape) for name, shape in shapes.items()]


def windows(numel: int) -> list[tuple[int, int]]:
    """Where a tensor of that many elements is not zero, in its row-major order."""
    if numel <= CHUNK:
        return [(0, numel)]
    middle = numel // CHUNK // 2 * CHUNK
    starts = (0, middle - WINDOW // 2, numel - WINDOW)
    return [(start, start + WINDOW) for start in starts]


def values(role: str, name: str, window: tuple[int, int]) -> torch.Tensor:
    """What a model has in a window: the same whenever it is asked."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{role} {name} {window}".encode()))
    return torch.randn(window[1] - window[0], generator=generator).to(torch.bfloat16)


def make(folder: Path, role: str, placed: Layout) -> None:
    """The checkpoint ``folder/role``: everything about it is real but its holes."""
    root = folder / role
    write_sparse(root, placed)
    for tensor in placed.tensors:
        with (root / placed.shards[tensor.shard].name).open("r+b") as file:
            for window in windows(tensor.nbytes // ITEM):
                file.seek(tensor.offset + ITEM * window[0])
                file.write(_bits(values(role, tensor.name, window)).numpy().tobytes())


def write_sparse(root: Path, placed: Layout) -> None:
    """A checkpoint whose headers and index are real and whose values are holes."""
    root.mkdir(parents=True)
    (root / "config.json").write_text(json.dumps({"model_type": "llama"}))
    index = placed.index()
    if index is not None:
        (root / INDEX).write_bytes(index)
    for shard in placed.shards:
        with (root / shard.name).open("wb") as file:
            file.write(shard.header)
            file.truncate(shard.size)


class Check:
    """Is every value of ``target + 0.8 * (ft - base)`` what it has to be? SystemExit if not."""

    def __init__(self, placed: Layout) -> None:
        self.sizes = {tensor.name: tensor.nbytes // ITEM for tensor in placed.tensors}
        self.seen = dict.fromkeys(self.sizes, 0)
        self.random = 0

    def part(self, name: str, start: int, found: torch.Tensor) -> None:
        """``found`` is the tensor's next part, from element ``start`` on."""
        if start != self.seen[name]:
            raise SystemExit(f"{name}: element {start} comes after {self.seen[name]}")
        self.seen[name] = stop = start + found.numel()
        here = start
        for window in windows(self.sizes[name]):
            low, high = max(start, window[0]), min(stop, window[1])
            if low < high:
                self._zero(name, here, found[here - start : low - start])
                inside = slice(low - window[0], high - window[0])
                self._window(name, window, inside, found[low - start : high - start])
                self.random += high - low
                here = high
        self._zero(name, here, found[here - start :])

    def end(self) -> str:
        """Nothing may be missing; what was compared."""
        if self.seen != self.sizes:
            missing = [name for name, size in self.sizes.items() if self.seen[name] != size]
            raise SystemExit(f"incomplete: {', '.join(missing)}")
        zeros = sum(self.sizes.values()) - self.random
        return f"{self.random / 1e6:.2f} M random values and {zeros / 1e9:.2f} G zeros as expected"

    def _zero(self, name: str, start: int, found: torch.Tensor) -> None:
        # torch.equal takes sixty times as long, which is most of the time that a merge takes here.
        if _bits(found).numpy().any():
            raise SystemExit(f"{name}: not all zero from element {start} on")

    @staticmethod
    def _window(name: str, window: tuple[int, int], inside: slice, found: torch.Tensor) -> None:
        stored = [values(role, name, window)[inside] for role in ROLES]
        target, base, ft = (tensor.float().numpy() for tensor in stored)
        once = torch.from_numpy(target + target.dtype.type(SCALING) * (ft - base))
        if not torch.equal(_bits(found), _bits(once.to(torch.bfloat16))):
            raise SystemExit(f"{name}{list(window)}: not what float32, rounded once, gives")
        target, base, ft = (tensor.double() for tensor in stored)
        exact = target + SCALING * (ft - base)
        # Half a unit of bfloat16, and what float32 may lose where the terms cancel.
        allowed = 2.0**-8 * exact.abs() + 2.0**-22 * (target.abs() + base.abs() + ft.abs())
        if bool(((found.double() - exact).abs() > allowed).any()):
            raise SystemExit(f"{name}{list(window)}: too far from the value in float64")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int16)


def parts(folder: Path, name: str, file: str) -> Iterator[tuple[int, torch.Tensor]]:
    """A tensor of a checkpoint in parts, as safetensors reads it."""
    from safetensors import safe_open

    with safe_open(folder / file, "pt") as opened:
        rows = opened.get_slice(name)
        shape = rows.get_shape()
        step = 128 if len(shape) > 1 else shape[0]
        for row in range(0, shape[0], step):
            part = rows[row : row + step].reshape(-1)
            yield row * (shape[1] if len(shape) > 1 else 1), part
