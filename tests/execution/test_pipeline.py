"""The loop of accelerators on a stand-in that is as asynchronous as can be: bytes, order,
bounds."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, combinations
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schedules import EXPRESSIONS, WHOLE, Kept, random_leaves, scheduled
from stand_in_device import ROLES, StandInDevice, Violation
from torch import Tensor

from mergeengine.compiler.graph import Graph, OutputTensor, compute_dtype
from mergeengine.compiler.ring import SPACING, Ring, ring
from mergeengine.compiler.schedule import Schedule, schedule
from mergeengine.errors import InputChangedError
from mergeengine.execution import pipeline as pipeline_module
from mergeengine.execution import work
from mergeengine.execution.executor import execute
from mergeengine.execution.nonfinite import NotFinite
from mergeengine.execution.pipeline import Pipeline
from mergeengine.execution.slots import Lane, Slot, Slots
from mergeengine.lazy.dtypes import BFLOAT16, FLOAT32, FLOAT64, DType
from mergeengine.lazy.tensor import LazyTensor, concat

Store = Callable[[Tensor], LazyTensor]
GiB = 1 << 30
SUBSETS = [frozenset(c) for c in chain(*(combinations(ROLES, n) for n in range(4)))]
POLICIES: dict[str, dict[str, Any]] = {
    **{f"early: {' '.join(sorted(roles)) or 'none'}": {"early": roles} for roles in SUBSETS},
    **{f"chance {seed}": {"seed": seed} for seed in range(4)},
}


def planned(plan: Schedule, devices: int = 1, workers: int = 1, **sizes: int) -> Ring:
    sizes = {"memory": GiB, "device_memory": GiB, **sizes}
    return ring(plan, devices=devices, workers=workers, **sizes)


def through(
    plan: Schedule,
    *devices: StandInDevice,
    workers: int = 1,
    sink: Kept | None = None,
    **sizes: int,
) -> tuple[dict[tuple[int, int], bytes], list[list[NotFinite]]]:
    """The parts that a sink is given, and the outputs that are told not to be finite."""
    sink = sink or Kept()
    opened = Pipeline(devices, planned(plan, len(devices), workers, **sizes), GiB)
    strange = execute(plan, sink, pipeline=opened)
    assert sum(device.pending for device in devices) == 0
    return sink.parts, strange


def by_the_cpu(plan: Schedule) -> tuple[dict[tuple[int, int], bytes], list[list[NotFinite]]]:
    sink = Kept()
    strange = execute(plan, sink)
    return sink.parts, strange


def small(
    store: Store, dtype: DType = BFLOAT16, names: Sequence[str] = (*EXPRESSIONS,)
) -> Schedule:
    """Every expression over tensors of their own: more blocks than any ring has slots."""
    values = []
    for seed, name in enumerate(names):
        leaves = [store(leaf) for leaf in random_leaves(3, (24, 17), torch.bfloat16, seed)]
        values.append(EXPRESSIONS[name](*leaves))
    return scheduled(values, dtype)


# --- bytes -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32], ids=["bf16", "f32"])
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_bytes_of_the_cpu(policy: str, slots: int, dtype: DType, store: Store) -> None:
    plan = small(store, dtype)
    least = planned(plan, device_memory=GiB)
    room = {} if slots == 2 else {"device_memory": _of_one_slot(least)}
    assert planned(plan, **room).slots == slots
    assert through(plan, StandInDevice(**POLICIES[policy]), **room) == by_the_cpu(plan)


def _of_one_slot(ring: Ring) -> int:
    return ring.device_bytes - (ring.input_bytes + ring.result_bytes)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_tensors_of_several_chunks(name: str, store: Store) -> None:
    """No chunk ends where a row does, so that blocks fall into several boxes."""
    kinds = (torch.bfloat16, torch.float32, torch.float16)
    leaves = [store(random_leaves(1, (1300, 901), kind, n)[0]) for n, kind in enumerate(kinds)]
    plan = scheduled([EXPRESSIONS[name](*leaves)], FLOAT64)
    expected = by_the_cpu(plan)
    assert through(plan, StandInDevice(), workers=1) == expected
    assert through(plan, StandInDevice(seed=1), workers=3) == expected


@pytest.mark.parametrize("name", ["transfer", "permuted", "largest", "per row"])
def test_blocks_of_several_chunks(name: str, store: Store) -> None:
    leaves = [store(leaf) for leaf in random_leaves(3, (4001, 901), torch.bfloat16)]
    plan = scheduled([EXPRESSIONS[name](*leaves)], BFLOAT16, block_chunks=3)
    (whole, _), (parts, _) = through(plan, StandInDevice()), by_the_cpu(plan)
    assert len(parts) == 2
    assert whole == parts


def test_workers_that_share_a_device(store: Store) -> None:
    plan = small(store, names=(*EXPRESSIONS,) * 3)
    for seed in range(5):
        assert through(plan, StandInDevice(seed=seed), workers=4) == by_the_cpu(plan)


def test_several_devices_split_the_blocks(store: Store) -> None:
    plan = small(store, names=(*EXPRESSIONS,) * 3)
    devices = [StandInDevice(seed=seed) for seed in range(3)]
    assert planned(plan, 3, 1).workers == 3
    assert through(plan, *devices) == by_the_cpu(plan)
    assert all(len(device.queues) == 3 for device in devices)


@pytest.mark.parametrize("policy", POLICIES)
def test_outputs_that_are_made_together(policy: str, store: Store) -> None:
    """One reading for several models, some of whose tensors are copies, numbers, or not finite."""
    leaves = [store(leaf) for leaf in random_leaves(3, (40, 30), torch.bfloat16)]
    leaves[1] = leaves[1] / abs(leaves[2]).kth_magnitude(600)
    graphs = [
        Graph(
            tuple(
                OutputTensor(name, BFLOAT16, compute_dtype(BFLOAT16), node)
                for name, node in (
                    ("w", (leaves[0] + factor * (leaves[1] - leaves[2])).node),
                    ("c", leaves[0].node if factor < 2 else (leaves[0] * factor).node),
                    ("f", leaves[2].node),
                    ("i", (leaves[0] * (8e37 * factor)).node),
                    ("l", (concat([leaves[0] * factor, leaves[2]]) / leaves[0].norm()).node),
                )
            )
        )
        for factor in (0.3, 1.0, 2.5)
    ]
    plan = schedule(*graphs, memory=GiB, workers=2)
    assert any(len(tensor.destinations) == 3 for tensor in plan.tensors)
    found, expected = [Kept() for _ in graphs], [Kept() for _ in graphs]
    device = StandInDevice(**POLICIES[policy])
    opened = Pipeline((device,), planned(plan), GiB)
    strange = execute(plan, *found, pipeline=opened)
    assert strange == execute(plan, *expected)
    assert strange[0] != strange[2]
    assert [kept.parts for kept in found] == [kept.parts for kept in expected]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("policy", ["early: none", "chance 1"])
def test_whole_nodes(policy: str, there: bool, store: Store) -> None:
    """The stand-in's decomposition is the CPU's, so that bytes can be compared."""
    leaves = [store(leaf) for leaf in random_leaves(3, (40_000, 30), torch.float32)]
    plan = scheduled([make(*leaves) for make in (*WHOLE.values(), *EXPRESSIONS.values())], FLOAT32)
    most = planned(plan)
    assert most.whole_bytes
    room = {} if there else {"device_memory": most.device_bytes - 1}
    assert bool(planned(plan, **room).whole_bytes) is there
    device = StandInDevice(**POLICIES[policy])
    assert through(plan, device, **room) == by_the_cpu(plan)
    used = device.peak_bytes - (most.device_bytes - most.temporary_bytes - most.whole_bytes)
    assert (used > 0) is there


def test_values_that_are_not_finite_are_told(store: Store) -> None:
    for dtype in (BFLOAT16, FLOAT32, FLOAT64):
        strange = torch.tensor([[1.0, torch.inf, torch.nan, -torch.nan, -0.0, 1e-40]])
        strange.view(torch.int32)[0, 3] = -0x3FFFF0  # another NaN
        odd, large, plain = store(strange), store(torch.full((1, 6), 3e38)), store(torch.ones(1, 6))
        values = [odd + plain, large + large, plain + plain, odd, plain * large]
        plan = scheduled(values, dtype)
        found = through(plan, StandInDevice())
        assert found == by_the_cpu(plan)
        names = [each.tensor for each in found[1][0]]
        assert "0" in names
        assert "2" not in names


def test_bytes_of_eight_bits_are_converted_there(store: Store) -> None:
    leaves = random_leaves(3, (30, 40), torch.float8_e4m3fn)
    plan = scheduled([EXPRESSIONS["transfer"](*map(store, leaves))], BFLOAT16)
    assert through(plan, StandInDevice()) == by_the_cpu(plan)


def test_numbers_scalars_and_empty_tensors(store: Store) -> None:
    number, empty = store(torch.tensor(2.5)), store(torch.zeros(0, 7))
    cube = store(random_leaves(1, (5, 6, 7), torch.float32)[0])
    values = (number + 1.0, empty + 1.0, cube.permute(2, 0, 1) * number, cube.take([4, -1, 0], 1))
    plan = scheduled(values, FLOAT32)
    for policy in POLICIES.values():
        assert through(plan, StandInDevice(**policy)) == by_the_cpu(plan)


def test_what_is_done_is_not_made_again(store: Store) -> None:
    leaves = [store(leaf) for leaf in random_leaves(3, (4000, 900), torch.bfloat16)]
    plan = scheduled([EXPRESSIONS["largest"](*leaves)], BFLOAT16)
    expected, _ = by_the_cpu(plan)
    found, _ = through(plan, StandInDevice(), sink=Kept(done=[(0, 0), (0, 2)]))
    assert found == {place: expected[place] for place in ((0, 1), (0, 3))}


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_layouts_and_orders(store: Store, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3), label="shape"))
    leaves = random_leaves(2, shape, torch.float32, data.draw(st.integers(0, 100), label="values"))
    first, second = map(store, leaves)
    values = [first]
    for _ in range(data.draw(st.integers(1, 8), label="steps")):
        value = values[-1]
        rank = len(value.shape)
        step = data.draw(st.sampled_from(["slice", "permute", "take", "concat", "add", "norm"]))
        if step == "slice":
            low = data.draw(st.integers(0, value.shape[0] - 1))
            value = value[low:]
        elif step == "permute":
            value = value.permute(*data.draw(st.permutations(range(rank))))
        elif step == "take":
            dimension = data.draw(st.integers(0, rank - 1))
            rows = st.lists(st.integers(-1, value.shape[dimension] - 1), min_size=1, max_size=7)
            value = value.take(data.draw(rows), dimension)
        elif step == "concat":
            value = concat([value, value * 2.0], data.draw(st.integers(0, rank - 1)))
        elif step == "add" and value.shape == second.shape:
            value = value + second
        else:
            value = value * (second.norm() - 0.5)
        values.append(value)
    plan = scheduled(values, FLOAT32)
    device = StandInDevice(seed=data.draw(st.integers(0, 1000), label="order"))
    workers = data.draw(st.integers(1, 3), label="workers")
    assert through(plan, device, workers=workers) == by_the_cpu(plan)


# --- order: without any one of the waits it goes wrong -----------------------------------


@pytest.mark.parametrize("missing", ["computing", "outgoing", "host"])
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("kind", ["transfer", "normalised", "largest", "per row"])
def test_no_wait_can_be_left_out(missing: str, slots: int, kind: str, store: Store) -> None:
    plan = small(store, names=[kind] * 6)
    room = {} if slots == 2 else {"device_memory": _of_one_slot(planned(plan))}
    assert goes_wrong(plan, StandInDevice(ignoring=missing), planned(plan, **room))
    assert not goes_wrong(plan, StandInDevice(), planned(plan, **room))


class HastySlots(Slots):
    """Slots that are used again before what is under way in them was waited for."""

    def __init__(self, lane: Lane, ring: Ring) -> None:
        super().__init__(lane, ring)
        self._late: list[tuple[Any, Callable[[], None]]] = []

    @property
    def busy(self) -> bool:
        return bool(self._late) or super().busy

    def take(self) -> Slot:
        slot = self._slots.pop(0)
        self._slots.append(slot)
        if slot.done is not None and slot.deliver is not None:
            self._late.append((slot.done, slot.deliver))
            slot.done = slot.deliver = None
        return slot

    def deliver_one(self) -> None:
        if not self._late:
            return super().deliver_one()
        done, deliver = self._late.pop(0)
        done.synchronize()
        return deliver()


@pytest.mark.parametrize(
    ("memory", "early"),
    [
        ("pinned input", ()),
        ("input on the device", ("incoming",)),
        ("result on the device", ("incoming", "computing")),
        ("pinned result", ("incoming", "computing", "outgoing")),
    ],
)
def test_no_memory_of_a_slot_is_used_again_too_early(
    memory: str, early: tuple[str, ...], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each order is right up to the memory that is named, and finds that this one was not free."""
    plan = small(store, names=["transfer"] * 6)
    monkeypatch.setattr(pipeline_module, "Slots", HastySlots)
    assert goes_wrong(plan, StandInDevice(frozenset(early)), planned(plan))
    enough = replace(planned(plan), slots=6)  # none is used again
    assert not goes_wrong(plan, StandInDevice(frozenset(early)), enough)


def test_nobody_waits_for_work_with_blocks_under_way(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reduction's next pass begins when its last block is delivered: both would wait for ever."""
    device, waited = StandInDevice(), []
    take = work.Work.next

    def next_task(work: Any, *, wait: bool = True) -> Any:
        if wait:
            waited.append(device.pending)
        return take(work, wait=wait)

    monkeypatch.setattr(work.Work, "next", next_task)
    through(small(store, names=["largest", "per row", "nested"]), device)
    assert waited
    assert not any(waited)


def test_nothing_is_under_way_when_memory_goes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small(store, names=["transfer"] * 6)
    file = plan.tensors[3].write.pieces[0].program.loads[0].view.stored.file.path
    file.write_bytes(file.read_bytes()[:50])
    for settles in (True, False):
        device = StandInDevice()
        if not settles:
            monkeypatch.setattr(Lane, "settle", lambda self: None)
        with pytest.raises(InputChangedError):
            execute(plan, Kept(), pipeline=Pipeline((device,), planned(plan), GiB))
        assert (device.pending == 0) is settles


def test_an_error_of_the_sink_ends_the_run(store: Store) -> None:
    class Full(Kept):
        def write(self, tensor: int, *rest: Any) -> None:
            if tensor == 5:
                raise OSError("no space")
            super().write(tensor, *rest)

    plan, device = small(store), StandInDevice(seed=2)
    with pytest.raises(OSError, match="no space"):
        through(plan, device, workers=2, sink=Full())
    assert device.pending == 0


def goes_wrong(plan: Schedule, device: StandInDevice, ring: Ring) -> bool:
    sink = Kept()
    try:
        execute(plan, sink, pipeline=Pipeline((device,), ring, GiB))
    except Violation:
        return True
    return sink.parts != by_the_cpu(plan)[0]


@pytest.mark.parametrize(("slots", "ahead"), [(1, 1), (2, 2), (4, 4)])
def test_the_host_waits_only_for_what_it_issued_a_ring_ago(
    slots: int, ahead: int, store: Store
) -> None:
    plan, device = small(store, names=["transfer"] * 8), StandInDevice()
    opened = Pipeline((device,), replace(planned(plan), slots=slots), GiB)
    execute(plan, Kept(), pipeline=opened)
    block, wait = ["incoming", "computing", "outgoing"], ["host waits"]
    steady = (wait + block) * (8 - ahead)
    settled = wait * 3
    assert device.log == block * ahead + steady + wait * ahead + settled


def test_only_stored_bytes_and_results_cross_the_bus(store: Store) -> None:
    """In one copy each way a block; a number and the flag of strange values go with them."""
    leaves = [store(leaf) for leaf in random_leaves(3, (1600, 901), torch.bfloat16)]
    for name, loads in (("transfer", 3), ("permuted", 2), ("many pieces", None)):
        plan, device = scheduled([EXPRESSIONS[name](*leaves)], BFLOAT16), StandInDevice()
        through(plan, device)
        write = plan.tensors[0].write
        numel, blocks = write.operand.numel, write.chunks
        assert len(device.crossed[True]) == len(device.crossed[False]) == blocks
        assert 0 <= sum(device.crossed[False]) - 2 * numel <= blocks * (SPACING + 1)
        if loads is not None:
            spare = blocks * SPACING * (5 * loads + 1)
            assert 0 <= sum(device.crossed[True]) - 2 * loads * numel <= spare


def test_what_is_only_copied_stays_on_the_host(store: Store) -> None:
    plan = scheduled([store(random_leaves(1, (1600, 901), torch.bfloat16)[0])], BFLOAT16)
    device = StandInDevice()
    assert through(plan, device) == by_the_cpu(plan)
    assert device.crossed == {True: [], False: []}


# --- bounds ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*EXPRESSIONS, *WHOLE])
@pytest.mark.parametrize("workers", [1, 3])
def test_memory_is_what_was_projected(name: str, workers: int, store: Store) -> None:
    leaves = [store(leaf) for leaf in random_leaves(3, (40_000, 30), torch.bfloat16)]
    plan = scheduled([{**EXPRESSIONS, **WHOLE}[name](*leaves)], FLOAT32)
    device, projected = StandInDevice(), planned(plan, workers=workers)
    through(plan, device, workers=workers)
    assert 0 < device.peak_bytes <= projected.device_bytes - projected.temporary_bytes
    assert 0 < device.peak_pinned_bytes <= projected.pinned_bytes
    gc.collect()
    assert device.bytes == device.pinned_bytes == 0


# --- the stand-in itself -----------------------------------------------------------------


@pytest.mark.parametrize(
    "act",
    [
        lambda m: m.add_(1),
        lambda m: m.copy_(torch.zeros(8, dtype=torch.uint8)),
        lambda m: bool(m[0]),
        lambda m: m[0].item(),
        lambda m: m[m > 0],
        lambda m: m.cpu(),
    ],
)
def test_the_host_must_not_touch_a_device(act: Callable[[Tensor], Any]) -> None:
    with pytest.raises(Violation):
        act(StandInDevice().memory(8))


@pytest.mark.parametrize(
    "act",
    [
        lambda m: m[m > 0],
        lambda m: m.nonzero(),
        lambda m: torch.bincount(m),
        lambda m: m.sum().item(),
        lambda m: int(m.sum()),
        lambda m: m.__setitem__(m > 0, 1),
    ],
)
def test_a_queue_must_not_make_the_host_wait(act: Callable[[Tensor], Any]) -> None:
    device = StandInDevice(frozenset(ROLES))
    memory, queue = device.memory(8), device.queue()
    with pytest.raises(Violation, match="makes the host wait"):
        queue.run(lambda: act(memory))


def test_memory_is_poisoned_and_actions_are_late() -> None:
    device = StandInDevice()
    there, here, queue = device.memory(4), device.host(4), device.queue()
    queue.run(lambda: there.zero_())
    queue.run(lambda: here.copy_(there))
    done = queue.record()
    assert here.tolist() == [0xA5] * 4
    done.synchronize()
    assert here.tolist() == [0] * 4
