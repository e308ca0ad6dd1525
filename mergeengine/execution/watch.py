"""What is watched while blocks are made: progress, what rounding lost, what is not finite."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mergeengine.execution.nonfinite import Examiner
from mergeengine.execution.notes import Strange, notes_of
from mergeengine.execution.precision import Precision, Sums
from mergeengine.execution.work import Task
from mergeengine.lazy.partition import CHUNK


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told of blocks, from many threads. ``progress`` takes bytes of output."""

    progress: Callable[[int], None]
    precision: Precision | None
    examiner: Examiner

    def notes(
        self, task: Task, start: int, sums: Sequence[Sequence[Sums]], strange: Strange
    ) -> list[list[str]]:
        """What goes to the sinks with the chunks from element ``start`` on, for each destination
        of a task."""
        guards = self.examiner.guards
        return notes_of(task.state.tensor, start // CHUNK, sums, strange, guards)

    def done(self, task: Task, start: int, stop: int, sums: Sequence[Sequence[Sums]]) -> None:
        """Elements ``start:stop`` (whole chunks) of a task are with the sinks; ``sums`` are those
        of their chunks, of each result, where they are measured."""
        if self.precision is not None and sums:
            self.precision.add(task.state.tensor, start // CHUNK, sums)
        self.progress(task.step.results * (stop - start) * task.step.result.itemsize)
