"""A program in the compiled loop's words: which passes it can run, and what it is given."""

from collections.abc import Callable
from ctypes import c_double, c_float
from itertools import count

from mergeengine.compiler.program import (
    Apply,
    Load,
    Operand,
    Program,
    Register,
    Scalar,
    flat_start,
)
from mergeengine.compiler.program import Result as ProgramResult
from mergeengine.compiler.schedule import Step
from mergeengine.execution import native
from mergeengine.lazy.dtypes import BFLOAT16, FLOAT32, DType
from mergeengine.lazy.nodes import Node
from mergeengine.lazy.partition import CHUNK
from mergeengine.lazy.stored import Stored

Numbers = Callable[[Node, DType], float]
"""The value of a number in float64, for arithmetic in a dtype."""


def constant(node: Node, compute: DType) -> float:
    """The value of a number that is one in the plan. Others take torch (``inputs.Inputs``)."""
    assert node.op == "constant"
    return float(node.value)


def needs_no_torch(step: Step) -> bool:
    """Whether the loop can run a pass alone."""
    return (
        step.kind == "write"
        and sources_of(step) is not None
        and all(
            operand.node.op == "constant"
            for instruction in step.pieces[0].program.instructions
            if isinstance(instruction, Apply)
            for operand in instruction.operands
            if isinstance(operand, Scalar)
        )
    )


def sources_of(step: Step) -> list[tuple[Stored, int]] | None:
    """What the loop reads for a step: stored tensors, each from a flat element on; None where it
    lacks the layout, an operation or a dtype."""
    if len(step.pieces) != 1 or not step.pieces[0].program.flat:
        return None
    program = step.pieces[0].program
    held = [flat_start(load.view) for load in program.loads]
    if not held or any(node.op != "stored" for node, _ in held):
        return None
    sources = [(node.stored, first) for node, first in held]
    if any(stored.file.is_remote for stored, _ in sources) and step.strip < min(
        step.operand.numel, CHUNK
    ):
        return None  # of what is remote it holds a block
    if _all_copied(program, step, sources):
        return sources
    known = (
        all(stored.dtype.name in native.DTYPES for stored, _ in sources)
        and all(isinstance(result.value, Register) for result in program.results)
        and step.result.name in native.DTYPES
        and all(isinstance(i, Load) or i.op in native.OPERATIONS for i in program.instructions)
    )
    return sources if known else None


def _is_copied(result: ProgramResult, step: Step, sources: list[tuple[Stored, int]]) -> bool:
    return result.copy is not None and sources[result.copy][0].dtype == step.result


def _all_copied(program: Program, step: Step, sources: list[tuple[Stored, int]]) -> bool:
    return all(_is_copied(result, step, sources) for result in program.results)


def compiled(step: Step, sources: list[tuple[Stored, int]], numbers: Numbers) -> native.Program:
    """A step's program as the loop reads it; ``sources`` are what ``sources_of`` found."""
    program = step.pieces[0].program
    values: list[float] = []
    copies = _all_copied(program, step, sources)
    results = [_result(result, step, sources) for result in program.results]
    instructions: list[native.Instruction] = []
    if not copies:
        dtypes = [stored.dtype for stored, _ in sources]
        in_place = _left_in_place(program, step, dtypes, {result.after for result in results})
        instructions = _instructions(program, step, in_place, numbers, values)
        for result in results:
            result.after -= sum(position < result.after for position in in_place)
    pairs = [
        native.Source(
            native.RAW if copies else native.DTYPES[stored.dtype.name], stored.dtype.itemsize
        )
        for stored, _ in sources
    ]
    return native.Program(
        compute=native.DTYPES[step.compute.name],
        count=len(instructions),
        registers=program.registers,
        source_count=len(sources),
        results=len(results),
        instructions=(native.Instruction * len(instructions))(*instructions),
        sources=(native.Source * len(sources))(*pairs),
        outputs=(native.Result * len(results))(*results),
        numbers=(c_double * len(values))(*values),
        rounded=(c_float * len(values))(*values),
    )


def _instructions(
    program: Program, step: Step, in_place: set[int], numbers: Numbers, values: list[float]
) -> list[native.Instruction]:
    """The loop's words for a program, whose numbers' ``values`` are gathered."""
    places: dict[int, int] = {}  # register -> what it is for the loop

    def operand(of: Operand) -> int:
        """A register's index, STORED + k for source k as it is, or ~k for the number k."""
        if isinstance(of, Register):
            return places[of.index]
        values.append(numbers(of.node, step.compute))
        return ~(len(values) - 1)

    words = []
    sources = count()
    for position, each in enumerate(program.instructions):
        if isinstance(each, Load):
            source = next(sources)
            if position in in_place:
                places[each.register.index] = native.STORED + source
                continue
            code, operands = native.LOAD, [source, 0, 0]
        else:
            code = native.OPERATIONS[each.op]
            operands = [operand(of) for of in each.operands]
            operands += operands[:1] * (3 - len(operands))  # what it does not use
        places[each.register.index] = each.register.index
        words.append(native.Instruction(code, each.register.index, *operands))
    return words


def _result(result: ProgramResult, step: Step, sources: list[tuple[Stored, int]]) -> native.Result:
    size = step.result.itemsize
    if _is_copied(result, step, sources):
        return native.Result(native.RAW, size, -1, -1, result.copy, -1)
    assert isinstance(result.value, Register)
    match result.start:
        case None:
            start = -1
        case Register(index):
            start = index
        case load:
            start = native.STORED + load
    dtype = native.DTYPES[step.result.name]
    return native.Result(dtype, size, result.value.index, result.after, -1, start)


def _left_in_place(program: Program, step: Step, dtypes: list[DType], kept: set[int]) -> set[int]:
    """The loads that need no register: bfloat16 that float32 sums and products use once or twice.
    ``kept`` are instructions whose values are results."""
    found = set()
    loads = iter(dtypes)
    for position, load in enumerate(program.instructions):
        if not isinstance(load, Load):
            continue
        dtype = next(loads)
        if position in kept or (dtype, step.compute) != (BFLOAT16, FLOAT32):
            continue
        users: list[Apply] = []
        for later in program.instructions[position + 1 :]:
            if isinstance(later, Apply) and load.register in later.operands:
                users.append(later)
            if later.register == load.register:
                break
        simple = all(
            user.op in ("add", "sub", "mul")
            and all(isinstance(operand, Register) for operand in user.operands)
            for user in users
        )
        if simple and len(users) <= 2:
            found.add(position)
    return found
