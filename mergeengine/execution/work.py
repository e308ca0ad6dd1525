"""What is done next: sinks, and the blocks that are handed out to workers."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Condition
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from mergeengine.compiler.program import arithmetic_of
from mergeengine.compiler.schedule import LOOKAHEAD, Schedule, Step, TensorSchedule
from mergeengine.errors import MergeEngineError
from mergeengine.lazy.dtypes import DType
from mergeengine.lazy.nodes import Node
from mergeengine.lazy.partition import CHUNK

if TYPE_CHECKING:
    from torch import Tensor

    from mergeengine.execution.reductions import Fold

_Outcome = tuple[Node, str]

Outcomes = Mapping[_Outcome, "Tensor"]
"""(reduction or whole node, name of the arithmetic's dtype) -> its value, on the CPU."""


class Sink(Protocol):
    """Where finished blocks go. Both methods are called from many threads."""

    def is_done(self, tensor: int, chunk: int) -> bool:
        """Whether a chunk need not be made again."""

    def write(self, tensor: int, first_chunk: int, data: memoryview, notes: Sequence[str]) -> None:
        """Take the bytes of consecutive chunks, which are valid during the call, and notes of the
        first of them, or of none (see ``execution.notes``)."""


@runtime_checkable
class FileSink(Sink, Protocol):
    """A sink of files, which whoever computes a block may write to itself."""

    def place(self, tensor: int, chunk: int) -> tuple[int, int]:
        """The open file that a chunk goes to, and the offset there..."""

    def record(
        self, tensor: int, first_chunk: int, digests: list[bytes], notes: Sequence[str]
    ) -> None:
        """... and then: consecutive chunks with these digests (XXH3-128) are in their place."""

    def failed(self, tensor: int, error: OSError) -> MergeEngineError:
        """The error to raise where writing there fails."""


@dataclass(slots=True)
class State:
    """How far one output tensor is: the current pass and what of it is under way."""

    tensor: TensorSchedule
    position: int = 0  # in tensor.steps
    running: bool = False
    next_chunk: int = 0
    pending: int = 0  # blocks handed out and not yet finished
    fold: "Fold | None" = None

    @property
    def step(self) -> Step:
        return self.tensor.steps[self.position]

    @property
    def finished(self) -> bool:
        return self.position == len(self.tensor.steps)


@dataclass(frozen=True, slots=True)
class Task:
    """Chunks ``first`` to ``last`` of a pass; of a whole node, all of them."""

    state: State
    step: Step
    first: int
    last: int


class Work:
    """Hands out blocks in order; a tensor's next pass starts when its last one is complete.

    A task of an output pass is of ``run`` chunks, a block where nothing is said.
    """

    def __init__(self, schedule: Schedule, sinks: Sequence[Sink], run: int | None = None) -> None:
        self.outcomes: dict[_Outcome, Tensor] = {}
        self.error: BaseException | None = None
        self._run = run or schedule.block_chunks
        self._sinks = sinks
        self._users = Counter(_outcome(s) for t in schedule.tensors for s in t.before)
        self._claimed: set[_Outcome] = set()
        self._waiting = deque(schedule.tensors)
        self._active: list[State] = []
        self._changed = Condition()

    def next(self, *, wait: bool = True) -> Task | None:
        """The next block, waiting for one if need be; None when there is nothing more to do, or,
        without ``wait``, nothing at the moment."""
        with self._changed:
            while self.error is None:
                for state in self._active:
                    task = self._hand_out(state)
                    if task is not None:
                        return task
                self._active = [state for state in self._active if not state.finished]
                if self._activate():
                    continue
                if not self._active or not wait:
                    return None
                self._changed.wait()
        return None

    def fail(self, error: BaseException) -> None:
        """Stop handing out blocks; the first error counts."""
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()

    def done(self, task: Task, left: "Tensor | None") -> None:
        """A block is finished; ``left`` is what a reduction's chunk or a whole node leaves."""
        state = task.state
        with self._changed:
            state.pending -= 1
            if state.fold is not None and left is not None:
                state.fold.accept(task.first, left)
            if state.pending == 0 and state.next_chunk >= task.step.chunks:
                self._end_pass(state, left)
            self._changed.notify_all()

    def _activate(self) -> bool:
        if not self._waiting or len(self._active) >= LOOKAHEAD:
            return False
        tensor = self._waiting[0]
        if _has_whole(tensor) and any(_has_whole(state.tensor) for state in self._active):
            return False  # the projection counts one output with whole nodes at a time
        self._waiting.popleft()
        if all(self._is_done(tensor, chunk) for chunk in range(tensor.write.chunks)):
            self._release(tensor)
        else:
            self._active.append(State(tensor))
        return True

    def _is_done(self, tensor: TensorSchedule, chunk: int) -> bool:
        """Whether every sink has a chunk: what one of them lacks is made for all."""
        return bool(self._sinks) and all(
            self._sinks[to.model].is_done(to.tensor, chunk) for to in tensor.destinations
        )

    def _hand_out(self, state: State) -> Task | None:
        """The next block of a tensor, or None where there is none at the moment."""
        while not state.finished:
            step = state.step
            if not state.running:
                key = _outcome(step)
                if step.kind != "write":
                    if key in self.outcomes:
                        state.position += 1
                        continue
                    if key in self._claimed:
                        return None  # another output is computing it
                    self._claimed.add(key)
                state.fold = self._fold_of(step) if step.kind == "reduce" else None
                state.next_chunk = 0
                state.running = True
            task = self._block(state, step)
            if task is not None or state.pending:
                return task
            self._end_pass(state, None)
        return None

    def _fold_of(self, step: Step) -> "Fold":
        from mergeengine.execution.reductions import fold_of  # torch, which not every run needs

        values = [self._value(node, step.compute) for node in step.node.inputs[1:]]
        if step.node.op == "derived":
            values.insert(0, self._value(step.node.inputs[0], step.compute))
        return fold_of(step.node, *values)

    def _value(self, node: Node, compute: DType) -> "Tensor":
        """What an earlier pass left, or a number that is known without one."""
        import torch

        if node.op == "constant":
            return torch.full(node.shape, node.value, dtype=torch.float64)
        return self.outcomes[node, arithmetic_of(node, compute).name]

    def _block(self, state: State, step: Step) -> Task | None:
        first, chunks = state.next_chunk, step.chunks
        most = {"write": self._run, "reduce": 1, "whole": chunks}[step.kind]
        if step.kind == "write":
            while first < chunks and self._is_done(state.tensor, first):
                first += 1
        while state.fold is not None and first < chunks and not state.fold.wants(first):
            first += 1
        last = first
        while last < min(chunks, first + most) and not (
            step.kind == "write" and self._is_done(state.tensor, last)
        ):
            last += 1
        state.next_chunk = last
        if first == last:
            return None
        state.pending += 1
        return Task(state, step, first, last)

    def _end_pass(self, state: State, left: "Tensor | None") -> None:
        step = state.step
        if step.kind == "write":
            self._release(state.tensor)
        else:
            result = state.fold.finish_pass() if state.fold is not None else left
            if result is None:
                state.next_chunk = 0  # the same again: a select by digits takes several passes
                return
            self.outcomes[_outcome(step)] = result
        state.running = False
        state.position += 1

    def _release(self, tensor: TensorSchedule) -> None:
        for step in tensor.before:
            key = _outcome(step)
            self._users[key] -= 1
            if not self._users[key]:
                self.outcomes.pop(key, None)


def span(task: Task, first: int | None = None, last: int | None = None) -> tuple[int, int]:
    """The elements of a task, or of some of its chunks."""
    first = task.first if first is None else first
    last = task.last if last is None else last
    return first * CHUNK, min(last * CHUNK, task.step.operand.numel)


def _outcome(step: Step) -> _Outcome:
    return step.node, step.compute.name


def _has_whole(tensor: TensorSchedule) -> bool:
    return any(step.kind == "whole" for step in tensor.before)
