"""What accelerators hold: sizes of slots, how many there are, and what does not fit."""

from typing import Any

import pytest
from test_schedule import leaf, planned, transfer

from mergeengine.compiler.ring import SLOTS, Ring, pinned, ring
from mergeengine.compiler.schedule import COMFORTABLE, Schedule
from mergeengine.errors import ResourceError
from mergeengine.lazy.dtypes import FLOAT32

MIB = 1 << 20
CHUNK = 1 << 20


def rings(plan: Schedule, **options: Any) -> Ring:
    options = {"devices": 1, "workers": 4, "memory": 1 << 30, "device_memory": 1 << 30, **options}
    return ring(plan, **options)


def test_a_slot_holds_stored_bytes_and_results() -> None:
    found = rings(planned(transfer(5000, 8192)))
    assert 6 * CHUNK <= found.input_bytes <= 6 * CHUNK + 4096
    assert 2 * CHUNK <= found.result_bytes <= 2 * CHUNK + 512
    assert found.workspace_bytes == 2 * 4 * CHUNK  # two registers


def test_memory_does_not_grow_with_the_tensor() -> None:
    assert rings(planned(transfer(5000, 8192))) == rings(planned(transfer(5_000_000, 8192)))


def test_a_view_that_is_broadcast_takes_what_it_is() -> None:
    value = leaf("t", 2000, 1000) / leaf("f", 2000, 1000).row_sum()
    found = rings(planned(value))
    assert found.input_bytes <= 2 * CHUNK + 3 * 8 * 2000 + 4096


def test_pinned_memory_is_counted_as_torch_takes_it() -> None:
    assert [pinned(size) for size in (1, 2, 3, 4096, 4097)] == [1, 2, 4, 4096, 8192]


@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("sources", [1, 10])
def test_what_is_allowed_is_kept(devices: int, sources: int) -> None:
    plan = planned(transfer(100_000, 8192, sources=sources))
    for workers in (1, 3, 8):
        for memory in (300, 500, 1000):
            for there in (200, 300, 600, 5000):
                try:
                    found = rings(
                        plan,
                        devices=devices,
                        workers=workers,
                        memory=memory * MIB,
                        device_memory=there * MIB,
                    )
                except ResourceError:
                    continue
                assert found.projected_bytes <= memory * MIB
                assert found.device_bytes <= there * MIB
                assert devices <= found.workers <= max(devices, workers)
                assert 1 <= found.slots <= SLOTS


def test_workers_beyond_what_helps_are_not_started() -> None:
    found = rings(planned(transfer(100_000, 8192)), workers=64, memory=64 << 30)
    assert found.pinned_bytes <= COMFORTABLE
    assert found.slots == SLOTS


def test_a_ring_of_one_where_two_do_not_fit() -> None:
    plan = planned(transfer(100_000, 8192))
    whole = rings(plan, workers=1)
    one = rings(plan, workers=1, device_memory=whole.device_bytes - 1)
    assert (whole.slots, one.slots) == (2, 1)


@pytest.mark.parametrize(
    ("option", "text"), [("memory", "of memory"), ("device_memory", "on each device")]
)
def test_too_small_a_budget_is_refused_with_what_would_do(option: str, text: str) -> None:
    plan = planned(transfer(100_000, 8192), dtype=FLOAT32)
    with pytest.raises(ResourceError) as caught:
        rings(plan, devices=2, **{option: 10 * MIB})
    assert f"MiB {text} to run on 2 accelerators, and 10 MiB were allowed" in str(caught.value)
    assert f"raise --{option.replace('_', '-')}" in str(caught.value)
    least = int(str(caught.value).split("at least ")[1].split(" MiB")[0])
    assert rings(plan, devices=2, **{option: least * MIB}).workers == 2


def test_whole_nodes_go_where_they_fit() -> None:
    plan = planned(transfer(2000, 1000).low_rank(3))
    there = rings(plan)
    assert there.whole_bytes >= 4 * 2000 * 1000 * 4
    assert rings(plan, device_memory=there.device_bytes - 1).whole_bytes == 0
