"""The path through an accelerator: driven on the CPU here, for real where there is a GPU."""

from collections.abc import Callable

import pytest
import torch
from naive import oracle
from torch import Tensor

from mergeengine.compiler.graph import Graph, OutputTensor, compute_dtype
from mergeengine.compiler.schedule import Schedule, schedule
from mergeengine.errors import ResourceError
from mergeengine.execution.arena import Arena
from mergeengine.execution.blocks import Accelerator, BlockRunner
from mergeengine.execution.device import choose_device
from mergeengine.execution.executor import execute
from mergeengine.execution.kernels import torch_dtype
from mergeengine.execution.reader import Reader
from mergeengine.lazy.dtypes import BFLOAT16, FLOAT32, DType
from mergeengine.lazy.partition import CHUNK
from mergeengine.lazy.tensor import LazyTensor, concat

Store = Callable[[Tensor], LazyTensor]

EXPRESSIONS: dict[str, Callable[[LazyTensor, LazyTensor, LazyTensor], LazyTensor]] = {
    "transfer": lambda t, f, b: t + 0.7 * (f - b),
    "copied": lambda t, f, b: t,
    "joined": lambda t, f, b: concat([t - b, f]) * 0.5,
    "permuted": lambda t, f, b: t.permute(1, 0) - 0.3 * b.permute(1, 0),
}


def scheduled(value: LazyTensor, dtype: DType) -> Schedule:
    graph = Graph((OutputTensor("x", dtype, compute_dtype(dtype), value.node),))
    return schedule(graph, memory=1 << 30, workers=2)


class Memory:
    def __init__(self) -> None:
        self.parts: dict[int, bytes] = {}

    def is_done(self, tensor: int, chunk: int) -> bool:
        return False

    def write(self, tensor: int, first_chunk: int, data: memoryview) -> None:
        self.parts[first_chunk] = bytes(data)

    def content(self) -> bytes:
        return b"".join(part for _, part in sorted(self.parts.items()))


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_device_memory_of_the_projected_size_suffices(
    name: str, dtype: DType, store: Store
) -> None:
    """The very code that an accelerator runs, with separate host and device arenas."""
    leaves = [store(torch.randn(1300, 900).to(torch.bfloat16)) for _ in range(3)]
    value = EXPRESSIONS[name](*leaves)
    plan = scheduled(value, dtype)
    host, there = Arena(plan.arena_bytes), Arena(plan.device_arena_bytes, torch.device("cpu"))
    waits = []
    step = plan.tensors[0].write
    size = plan.block_chunks * CHUNK
    result = torch.empty(value.node.numel, dtype=torch_dtype(dtype))
    with Reader() as reader:
        runner = BlockRunner(host, reader, {}, Accelerator(there, lambda: waits.append(1)))
        for start in range(0, result.numel(), size):
            stop = min(start + size, result.numel())
            (result[start:stop],) = runner.run(step, start, stop)
    sink = Memory()
    execute(plan, sink)
    assert result.view(torch.uint8).numpy().tobytes() == sink.content()
    assert len(waits) == -(-result.numel() // size)
    assert torch.allclose(result.view(value.shape).double(), oracle(value.node), atol=0.05)


def test_no_such_device_is_said_plainly() -> None:
    with pytest.raises(ResourceError, match="no device 'nonsense'"):
        choose_device("nonsense")
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="torch finds only"):
            choose_device("cuda")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_gpu_gives_the_same_bytes(name: str, dtype: DType, store: Store) -> None:
    leaves = [store(torch.randn(2300, 1900).to(torch.bfloat16)) for _ in range(3)]
    value = EXPRESSIONS[name](*leaves)
    sinks = Memory(), Memory()
    execute(scheduled(value, dtype), sinks[0])
    execute(scheduled(value, dtype), sinks[1], device=choose_device("cuda"))
    assert sinks[0].content() == sinks[1].content()


@pytest.mark.cuda
def test_reductions_on_a_gpu_are_the_same(store: Store) -> None:
    leaf = store(torch.randn(2300, 1900).to(torch.bfloat16))
    value = leaf * (1.0 / leaf.norm()) + leaf.kth_magnitude(1000)
    sinks = Memory(), Memory()
    execute(scheduled(value, FLOAT32), sinks[0])
    execute(scheduled(value, FLOAT32), sinks[1], device=choose_device("cuda"))
    assert sinks[0].content() == sinks[1].content()
