"""Choosing devices, torch's own as devices of the pipeline, and, where there is a GPU, the real
one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from schedules import EXPRESSIONS, WHOLE, Kept, random_leaves, scheduled
from torch import Tensor

from mergeengine.compiler.schedule import Schedule
from mergeengine.errors import ResourceError
from mergeengine.execution.device import choose_devices
from mergeengine.execution.executor import execute
from mergeengine.execution.kernels import torch_dtype
from mergeengine.execution.pipeline import open_pipeline
from mergeengine.execution.queues import TorchDevice
from mergeengine.lazy.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, DType
from mergeengine.lazy.tensor import LazyTensor

Store = Callable[[Tensor], LazyTensor]
CPU = torch.device("cpu")
GiB = 1 << 30


# --- choosing ----------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None, int], None]:
    """Let torch find ``count`` accelerators of a type, or none."""

    def have(kind: str | None, count: int = 1) -> None:
        ask = torch.accelerator
        monkeypatch.setattr(ask, "is_available", lambda: kind is not None)
        monkeypatch.setattr(ask, "device_count", lambda: count if kind else 0)
        monkeypatch.setattr(ask, "current_accelerator", lambda: torch.device(kind or "cpu"))
        monkeypatch.setattr(ask, "current_device_index", lambda: 0)

    return have


def cuda(*indices: int) -> tuple[torch.device, ...]:
    return tuple(torch.device("cuda", index) for index in indices)


def test_what_is_chosen(machine: Callable[..., None]) -> None:
    machine(None)
    assert choose_devices() == choose_devices("cpu") == (CPU,)
    machine("cuda", 2)
    assert choose_devices() == choose_devices("cuda") == cuda(0)
    assert choose_devices("cuda:1") == cuda(1)
    assert choose_devices("cuda:0,cuda:1") == choose_devices("cuda:0, cuda:1") == cuda(0, 1)
    assert choose_devices("cuda:1,cuda:0") == cuda(1, 0)
    assert choose_devices("cpu") == (CPU,)
    machine("mps")
    assert choose_devices() == (CPU,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "no device 'nonsense': write cpu, cuda, cuda:0 or several as cuda:0,cuda:1"),
        ("cuda:0,", "no device '': write cpu"),
        ("xpu", "torch finds only the CPU and cuda"),
        ("cuda:2", "there are 2 of its type, counted from 0"),
        ("cuda:0,cuda:2", "no device 'cuda:2'"),
        ("cuda:1,cuda:1", "cuda:1 is there twice"),
        ("cuda,cuda:0", "cuda:0 is there twice"),
        ("cuda:0,cpu", "the CPU and accelerators do not share a run"),
        ("cpu,cpu", "the CPU and accelerators do not share a run"),
    ],
)
def test_what_cannot_be_chosen(name: str, message: str, machine: Callable[..., None]) -> None:
    machine("cuda", 2)
    with pytest.raises(ResourceError) as caught:
        choose_devices(name)
    assert message in str(caught.value)


def test_a_device_without_float64_is_refused(machine: Callable[..., None]) -> None:
    machine("mps")
    with pytest.raises(ResourceError, match="mps has no float64"):
        choose_devices("mps")


def test_where_there_is_none(machine: Callable[..., None]) -> None:
    machine(None)
    with pytest.raises(ResourceError, match="torch finds only the CPU"):
        choose_devices("cuda")


# --- torch's streams as queues -----------------------------------------------------------


class Stream:
    """Notes what torch.Stream would be asked for."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def __enter__(self) -> None:
        self.log.append("enter")

    def __exit__(self, *exception: object) -> None:
        self.log.append("exit")

    def record_event(self) -> str:
        self.log.append("record")
        return "event"

    def wait_event(self, event: str) -> None:
        self.log.append(f"wait for {event}")


def test_a_queue_is_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch, "Stream", lambda device: Stream(log))
    queue = TorchDevice(torch.device("cuda", 0)).queue()
    queue.run(lambda: log.append("act"))
    queue.wait_event(queue.record())
    assert log == ["enter", "act", "exit", "record", "wait for event"]


def test_what_is_used_of_torch_exists() -> None:
    assert callable(torch.Stream.record_event)
    assert callable(torch.Stream.wait_event)
    assert callable(torch.Stream.__enter__)
    assert callable(torch.Event.synchronize)


def test_a_full_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch, "empty", full)
    device = TorchDevice(torch.device("cuda", 1))
    with pytest.raises(ResourceError, match="cuda:1: no 4 MiB are free on the device"):
        device.memory(4 << 20)
    with pytest.raises(ResourceError, match="no 4 MiB of pinned host memory for cuda:1"):
        device.host(4 << 20)


def test_half_of_what_is_free_may_be_used(
    machine: Callable[..., None], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("cuda", 2)
    free = {0: 10 * GiB, 1: 6 * GiB}
    monkeypatch.setattr(
        torch.accelerator, "get_memory_info", lambda d: (free[d.index], 0), raising=False
    )
    plan = scheduled([store(torch.ones(3)) * 2.0], BFLOAT16)
    opened = open_pipeline(plan, cuda(0, 1), workers=4, memory=GiB)
    assert opened is not None
    assert (opened.name, opened.device_memory) == ("cuda:0,cuda:1", 3 * GiB)
    opened = open_pipeline(plan, cuda(0), workers=4, memory=GiB, device_memory=GiB)
    assert opened is not None
    assert opened.device_memory == GiB
    assert open_pipeline(plan, [CPU], workers=4, memory=GiB) is None


# --- for real ----------------------------------------------------------------------------


@contextmanager
def no_wait_but_for_events() -> Iterator[None]:
    """torch raises an error where an operation makes the host wait for a CUDA device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def both(plan: Schedule, names: str = "cuda", workers: int = 3) -> list[dict[Any, bytes]]:
    """The parts by the CPU, and by accelerators."""
    sinks = Kept(), Kept()
    execute(plan, sinks[0])
    opened = open_pipeline(plan, choose_devices(names), workers=workers, memory=GiB)
    execute(plan, sinks[1], pipeline=opened)
    return [sink.parts for sink in sinks]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16, FLOAT32, FLOAT64], ids=lambda d: d.name)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_gpu_gives_the_bytes_of_the_cpu(
    name: str, stored: torch.dtype, dtype: DType, store: Store
) -> None:
    leaves = [store(leaf) for leaf in random_leaves(3, (2300, 1901), stored)]
    plan = scheduled([EXPRESSIONS[name](*leaves)], dtype)
    with no_wait_but_for_events():
        cpu, gpu = both(plan)
    assert cpu == gpu


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16, FLOAT32], ids=lambda d: d.name)
def test_a_gpu_gives_the_bytes_of_the_cpu_for_any_bits(dtype: DType, store: Store) -> None:
    """Subnormal numbers, infinities, NaNs; sums that fall between two 16-bit values."""
    generator = torch.Generator().manual_seed(1)
    leaves = []
    for _ in range(3):
        raw = torch.randint(0, 256, (1400 * 900 * 4,), dtype=torch.uint8, generator=generator)
        leaves.append(store(raw.view(torch.float32).view(1400, 900)))
    names = ("transfer", "shared", "thresholds", "bounded", "permuted", "copied")
    values = [EXPRESSIONS[name](*leaves) for name in names]
    for compute in ("float32", "float64"):
        cpu, gpu = both(scheduled(values, dtype, compute))
        assert cpu == gpu


@pytest.mark.cuda
def test_many_small_outputs_on_a_gpu(store: Store) -> None:
    values = []
    for seed, make in enumerate([*EXPRESSIONS.values()] * 10):
        leaves = [store(leaf) for leaf in random_leaves(3, (64, 33), torch.bfloat16, seed)]
        values.append(make(*leaves))
    cpu, gpu = both(scheduled(values, BFLOAT16), workers=8)
    assert cpu == gpu


@pytest.mark.cuda
def test_several_gpus_give_the_bytes_of_the_cpu(store: Store) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    leaves = [store(leaf) for leaf in random_leaves(3, (2300, 1901), torch.bfloat16)]
    plan = scheduled([make(*leaves) for make in EXPRESSIONS.values()], BFLOAT16)
    cpu, gpus = both(plan, "cuda:0,cuda:1")
    assert cpu == gpus


@pytest.mark.cuda
@pytest.mark.parametrize("name", WHOLE)
def test_whole_nodes_on_a_gpu_are_close(name: str, store: Store) -> None:
    """Two decompositions round differently: only here bytes are not the same."""
    leaves = [store(leaf) for leaf in random_leaves(3, (1300, 901), torch.float32)]
    cpu, gpu = both(scheduled([WHOLE[name](*leaves)], FLOAT64))
    for place, part in cpu.items():
        one, other = (
            torch.frombuffer(bytearray(p), dtype=torch.float64) for p in (part, gpu[place])
        )
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT64], ids=lambda d: d.name)
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_memory_of_a_gpu_is_what_was_projected(name: str, dtype: DType, store: Store) -> None:
    leaves = [store(leaf) for leaf in random_leaves(3, (4600, 1901), torch_dtype(dtype))]
    plan = scheduled([EXPRESSIONS[name](*leaves)], dtype, "float64")
    opened = open_pipeline(plan, choose_devices("cuda"), workers=3, memory=GiB)
    assert opened is not None
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    execute(plan, Kept(), pipeline=opened)
    assert torch.cuda.max_memory_allocated() - before <= opened.ring.device_bytes
