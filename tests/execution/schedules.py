"""Expressions of every kind that streams, scheduled, and a sink that keeps the bytes."""

from collections.abc import Callable, Sequence

import torch

from mergeengine.compiler.graph import Graph, OutputTensor, compute_dtype
from mergeengine.compiler.schedule import Schedule, schedule
from mergeengine.lazy.dtypes import BFLOAT16, FLOAT32, DType
from mergeengine.lazy.tensor import LazyTensor, concat

Expression = Callable[[LazyTensor, LazyTensor, LazyTensor], LazyTensor]


def blocks(tensor: LazyTensor, rows: int, columns: int) -> LazyTensor:
    """One element for each block of so many rows and columns of a tensor of the same shape."""
    return tensor[: -(-tensor.shape[0] // rows), : -(-tensor.shape[1] // columns)]


EXPRESSIONS: dict[str, Expression] = {
    "transfer": lambda t, f, b: t + 0.7 * (f - b),
    "shared": lambda t, f, b: (f - b) * (f - b) + t / (f - b),
    "copied": lambda t, f, b: t,
    "rows copied": lambda t, f, b: t[1:],
    "columns copied": lambda t, f, b: t[:, 1:],
    "joined": lambda t, f, b: concat([t - b, f]) * 0.5,
    "beside": lambda t, f, b: concat([t, f * 2.0, b - t], 1),
    "many pieces": lambda t, f, b: concat([t[n : n + 1] * (n + 2.0) - b[:1] for n in range(20)]),
    "permuted": lambda t, f, b: t.permute(1, 0) - 0.3 * b.permute(1, 0),
    "part": lambda t, f, b: t[5:, 3:] - f[:-5, :-3],
    "taken": lambda t, f, b: t + 0.3 * f.take([3, 2, -1, *range(3, t.shape[0])]),
    "repeated": lambda t, f, b: t * blocks(f, 3, 40).repeat([3, 40], t.shape),
    "part of repeated": lambda t, f, b: (t * blocks(b, 4, 7).repeat([4, 7], t.shape))[
        3:, 5:
    ].permute(1, 0),
    "rows of repeated": lambda t, f, b: (
        t * blocks(f, 2, 3).repeat([2, 3], t.shape).take([5, -1, 3, 4, *range(4, t.shape[0])])
    ),
    "product": lambda t, f, b: t - 0.5 * (f[:, :5] @ b[-5:]),
    "product of many ranks": lambda t, f, b: (t[:300, :40] @ f.permute(1, 0)[:40]).permute(1, 0)[
        3:, 1:
    ],
    "rows of a product": lambda t, f, b: (f[:, 3:9] @ b[:6]).take([1, 0, *range(2, t.shape[0])]),
    "unstacked": lambda t, f, b: concat([t.unsqueeze(), f.unsqueeze()])[1:].squeeze() - b,
    "of the last dimension": lambda t, f, b: (
        t[:, :1].unsqueeze().permute(2, 0, 1).squeeze().permute(1, 0) + f[:, 3:4] - b
    ),
    "thresholds": lambda t, f, b: (abs(f - b) >= 0.5).where(t, -b) * (t > b) + f.eq(b),
    "bounded": lambda t, f, b: t.sign() * f.minimum(0.5).maximum(-0.25) + abs(b).sqrt(),
    "constant": lambda t, f, b: t * 0.0 + 3.0,
    "rounded": lambda t, f, b: (t + 0.3 * (f - b)).round_to(BFLOAT16) - f.round_to(FLOAT32),
    "normalised": lambda t, f, b: t * (0.5 / t.norm()) + f / (b.norm() + 1.0),
    "nested": lambda t, f, b: t * ((f - f.sum() / float(f.node.numel)).norm() / b.norm()),
    "per row": lambda t, f, b: t / (f * f).row_sum().sqrt(),
    "scaled by blocks": lambda t, f, b: (
        t / (f - b).block_max([7, 30]).repeat([7, 30], t.shape) + (t * b).block_max([1, t.shape[1]])
    ),
    "largest of blocks": lambda t, f, b: (t - b).block_max([64, 5]) * 2.0,
    "largest": lambda t, f, b: (abs(f - b) >= (f - b).kth_magnitude(100)).where(f, 0.0) + t,
    "sum": lambda t, f, b: (t - b).sum(),
}
WHOLE: dict[str, Expression] = {
    "low rank": lambda t, f, b: t + (f - b).low_rank(3),
    "norm of low rank": lambda t, f, b: t / ((f - b).low_rank(2) * 2.0).norm() + f,
}


class Kept:
    """A sink that keeps everything, and checks that nothing comes twice."""

    def __init__(self, done: Sequence[tuple[int, int]] = ()) -> None:
        self.parts: dict[tuple[int, int], bytes] = {}
        self._done = set(done)

    def is_done(self, tensor: int, chunk: int) -> bool:
        return (tensor, chunk) in self._done

    def write(self, tensor: int, first_chunk: int, data: memoryview, notes: Sequence[str]) -> None:
        assert (tensor, first_chunk) not in self.parts
        self.parts[tensor, first_chunk] = bytes(data)


def scheduled(
    values: Sequence[LazyTensor],
    dtype: DType,
    compute: str = "auto",
    block_chunks: int | None = None,
) -> Schedule:
    tensors = (
        OutputTensor(str(n), dtype, compute_dtype(dtype, compute), value.node)
        for n, value in enumerate(values)
    )
    graph = Graph(tuple(tensors))
    return schedule(graph, memory=1 << 30, workers=2, block_chunks=block_chunks)


def random_leaves(
    count: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]
