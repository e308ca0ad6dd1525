"""Jobs that wait for each other, in as many processes or threads as there are workers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import TypeVar

Job = TypeVar("Job", bound=Hashable)
Result = TypeVar("Result")


def run_jobs(
    waits_for: Mapping[Job, Sequence[Job]],
    do: Callable[[Job], Result],
    pool: Executor,
    workers: int,
) -> dict[Job, Result]:
    """Do each job when those that it waits for are done, earlier ones of the mapping first.

    The first error stops it, when what is running has come to its end.
    """
    waiting = list(waits_for)
    running: dict[Future[Result], Job] = {}
    results: dict[Job, Result] = {}
    while waiting or running:
        ready = [job for job in waiting if all(needed in results for needed in waits_for[job])]
        for job in ready[: workers - len(running)]:
            waiting.remove(job)
            running[pool.submit(do, job)] = job
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            results[running.pop(future)] = future.result()
    return results
