"""Projected memory, block size and passes."""

from pathlib import Path

import pytest

from mergeengine.compiler.graph import Graph, OutputTensor, compute_dtype
from mergeengine.compiler.program import Apply, Load, compile_expressions
from mergeengine.compiler.schedule import Schedule, schedule
from mergeengine.errors import ResourceError
from mergeengine.lazy import algebra
from mergeengine.lazy.dtypes import BFLOAT16, FLOAT32, FLOAT64, DType
from mergeengine.lazy.stored import Stored, StoredFile
from mergeengine.lazy.tensor import LazyTensor, concat

FILE = StoredFile(Path("/nowhere/model.safetensors"), 1 << 40)
MIB = 1 << 20


def leaf(name: str, *shape: int, dtype: DType = BFLOAT16) -> LazyTensor:
    return LazyTensor(algebra.stored(Stored("m", name, dtype, shape, FILE, 0)))


def transfer(*shape: int, sources: int = 1, dtype: DType = BFLOAT16) -> LazyTensor:
    merged = leaf("t", *shape, dtype=dtype)
    for number in range(sources):
        ft, base = (leaf(f"{kind}{number}", *shape, dtype=dtype) for kind in ("f", "b"))
        merged = merged + 0.5 * (ft - base)
    return merged


def planned(
    *values: LazyTensor, dtype: DType = BFLOAT16, memory: int = 1 << 30, workers: int = 8
) -> Schedule:
    tensors = (
        OutputTensor(str(n), dtype, compute_dtype(dtype), v.node) for n, v in enumerate(values)
    )
    return schedule(Graph(tuple(tensors)), memory=memory, workers=workers)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32, FLOAT64])
@pytest.mark.parametrize("sources", [1, 2, 10, 100, 500])
@pytest.mark.parametrize("rows", [1000, 1_000_000])
def test_elementwise_plans_stay_below_256_mib(dtype: DType, sources: int, rows: int) -> None:
    value = transfer(rows, 8192, sources=sources, dtype=dtype)
    assert planned(value, dtype=dtype, workers=64).projected_bytes <= 256 * MIB


def test_memory_does_not_grow_with_the_tensor() -> None:
    small, large = planned(transfer(5000, 8192)), planned(transfer(5_000_000, 8192))
    assert small.projected_bytes == large.projected_bytes


def test_a_smaller_budget_gives_fewer_workers_or_smaller_blocks() -> None:
    value = transfer(100_000, 8192)
    for budget in (60, 80, 100, 150, 200):
        assert planned(value, memory=budget * MIB).projected_bytes <= budget * MIB


def test_too_small_a_budget_is_refused_with_what_would_do() -> None:
    with pytest.raises(ResourceError) as raised:
        planned(transfer(100_000, 8192), memory=10 * MIB)
    least = float(str(raised.value).split("at least ")[1].split(" MiB")[0])
    assert planned(transfer(100_000, 8192), memory=int((least + 0.1) * MIB)).workers == 1


def test_whole_nodes_declare_their_workspace() -> None:
    plain, whole = planned(transfer(2000, 1000)), planned(transfer(2000, 1000).low_rank(3))
    assert whole.held_bytes > 4 * 2000 * 1000 * 4
    assert whole.projected_bytes >= plain.projected_bytes + whole.held_bytes - plain.arena_bytes * 8


def test_bytes_read_count_every_pass_and_only_what_is_needed() -> None:
    size = 1000 * 1000 * 2
    assert planned(transfer(1000, 1000)).read_bytes == 3 * size
    assert planned(leaf("t", 1000, 1000) + 0.0 * leaf("f", 1000, 1000)).read_bytes == size
    normed = leaf("t", 1000, 1000) / leaf("t", 1000, 1000).norm()
    assert planned(normed).read_bytes == 2 * size
    assert planned(leaf("t", 1000, 1000)[0:10]).read_bytes == 10 * 1000 * 2


def test_a_program_reuses_its_registers() -> None:
    program = compile_expressions(transfer(8, 8, sources=12).node)
    assert program.registers == 3
    assert len(program.loads) == 25
    assert program.flat


def test_a_shared_operand_is_computed_once() -> None:
    difference = leaf("a", 8, 8) - leaf("b", 8, 8)
    program = compile_expressions((difference * difference + difference).node)
    assert [i.op for i in program.instructions if isinstance(i, Apply)] == ["sub", "mul", "add"]
    assert sum(isinstance(i, Load) for i in program.instructions) == 2


def test_flat_only_where_elements_lie_one_after_the_other() -> None:
    a, b = leaf("a", 8, 8), leaf("b", 8, 8)
    assert compile_expressions((a[2:4] + b[1:3]).node).flat
    assert not compile_expressions((a[:, 2:4] + b[:, 1:3]).node).flat
    assert not compile_expressions((a + b.permute(1, 0)).node).flat
    assert compile_expressions((a * b.norm()).node).flat
    assert not compile_expressions((a * b.row_sum()).node).flat


def test_pieces_cover_a_concatenation() -> None:
    plan = planned(concat([transfer(3, 5), leaf("x", 4, 5) * 2.0]))
    assert [piece.box for piece in plan.tensors[0].write.pieces] == [
        ((0, 3), (0, 5)),
        ((3, 7), (0, 5)),
    ]
