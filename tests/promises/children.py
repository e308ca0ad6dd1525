"""Jobs in processes of their own, which tests kill, limit and watch.

They are forked from a server that has imported the engine, so that one more costs milliseconds.
What runs in them is here, apart from the tests: nothing else has to be imported there.
"""

import json
import multiprocessing
import os
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mergeengine.errors import MergeEngineError
from mergeengine.execution import native
from mergeengine.output import workspace, writer

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "pytest",
        "torch.linalg",
        "fsspec.implementations.http",
        "mergeengine.workflow.run",
        "mergeengine.execution.executor",
    ]
)

Hook = Callable[[], None]


class Child:
    """``function(*args)`` in a process of its own; it begins when ``go`` is called.

    ``answer`` is what the function returned, or the MergeEngineError it raised, by name and text.
    """

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._connection, theirs = _server.Pipe()
        self.process = _server.Process(target=_main, args=(theirs, function, args))
        self.process.start()
        theirs.close()
        self.base = self._connection.recv()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def go(self) -> "Child":
        self._connection.send("go")
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def ended(self) -> bool:
        return self._connection.poll() or not self.process.is_alive()

    def answer(self, timeout: float = 120) -> Any:
        """None where the process ended without an answer (``process.exitcode`` says how)."""
        try:
            if not self._connection.poll(timeout):
                self.kill()
                raise TimeoutError(f"no answer within {timeout} s")
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            answer = None
        self.process.join()
        return answer

    def watch(self) -> tuple[Any, int]:
        """The answer, and the peak of anonymous and shared memory beyond the imports."""
        peak = 0
        while not self.ended():
            peak = max(peak, _memory(self.pid))
            time.sleep(0.001)
        return self.answer(), peak - self.base


def call(function: Callable[..., Any], *args: Any, timeout: float = 120) -> Any:
    return Child(function, *args).go().answer(timeout)


def _memory(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in text.splitlines())
    return sum(int(fields.get(key, "0").split()[0]) * 1024 for key in ("RssAnon", "RssShmem"))


def _main(connection: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.fsync = _no_sync
    connection.send(_memory(os.getpid()))
    connection.recv()
    try:
        answer = function(*args)
    except MergeEngineError as error:
        answer = (type(error).__name__, str(error))
    connection.send(answer)


def _no_sync(descriptor: int) -> None:
    """A killed process loses nothing that it has written: only a machine that stops does."""


# --- what runs in them ---------------------------------------------------------------------


def run_plan(plan: Path, *hooks: tuple[Callable[..., None], Any], **options: Any) -> Any:
    """Run a plan; hooks are (function, argument), called first."""
    from mergeengine.workflow.run import run

    for hook, argument in hooks:
        hook(argument)
    result = run(plan, device="cpu", **options)
    return result.made, result.report


def run_with(plan: Path, options: dict[str, Any], *hooks: tuple[Callable[..., None], Any]) -> Any:
    return run_plan(plan, *hooks, **options)


def slow_writes(seconds: float) -> None:
    """Every block takes that much longer to write."""
    record = writer.ShardWriter.record

    def slow(self: Any, *args: Any) -> None:
        time.sleep(seconds)
        record(self, *args)

    writer.ShardWriter.record = slow  # type: ignore[method-assign]


def compiled(loop: bool) -> None:
    """Whether flat blocks are computed by the compiled loop, or everything by torch."""
    if loop:
        assert native.library() is not None, native.refused()
    else:
        os.environ[native.SWITCH] = "0"


def without_output(_: None) -> None:
    """Blocks are computed, hashed and journalled as ever, and none goes to the disk."""
    place, write_at = writer.ShardWriter.place, writer._write_at

    def nowhere(self: Any, tensor: int, chunk: int) -> tuple[int, int]:
        return -1, place(self, tensor, chunk)[1]

    def write(descriptor: int, offset: int, data: memoryview) -> None:
        if descriptor != -1:
            write_at(descriptor, offset, data)

    os.posix_fallocate = lambda *_: None
    shutil.disk_usage = lambda _: SimpleNamespace(free=1 << 60)
    writer.ShardWriter.place = nowhere  # type: ignore[method-assign]
    writer._write_at = write


def limit_data(extra: int) -> None:
    """The kernel refuses private memory of more than ``extra`` bytes beyond what there is."""
    text = Path("/proc/self/status").read_text()
    held = int(text.partition("VmData:")[2].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (held + extra, held + extra))


# Everything that changes a disk. A process that is killed stops before, inside or after one.
POINTS = (
    *("pwrite", "write", "fsync", "ftruncate", "posix_fallocate", "open"),
    *("mkdir", "rmdir", "unlink", "rename", "replace"),
)


def die_at(point: tuple[int, str]) -> None:
    """End at the n-th step that changes the disk: ``before``, ``torn`` (half written), ``after``.

    As after SIGKILL nothing is cleaned up. With n = 0 the steps are only listed.
    """
    at, moment = point

    def wrapped(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & (os.O_CREAT | os.O_TRUNC):
                return function(*args, **kwargs)
            _steps.append(name)
            here = len(_steps) == at
            if here and moment == "before":
                os._exit(9)
            if here and moment == "torn" and name in ("pwrite", "write"):
                data = memoryview(args[1]).cast("B")
                function(args[0], data[: len(data) // 2], *args[2:])
                os._exit(9)
            try:
                return function(*args, **kwargs)
            finally:
                if here:
                    os._exit(9)

        return step

    loop = native.Library.run

    def block(*args: Any) -> None:
        """The compiled loop's writing, which Python does not see: half a block is torn."""
        _steps.append("pwrite")
        here = len(_steps) == at
        if here and moment == "before":
            os._exit(9)
        if here and moment == "torn":
            *others, elements, piece, chunk, digests, outcome = args
            loop(*others, elements // 2, piece, chunk, digests, outcome)
            os._exit(9)
        loop(*args)
        if here:
            os._exit(9)

    for name in POINTS:
        setattr(os, name, wrapped(getattr(os, name), name))
    native.Library.run = block  # type: ignore[method-assign]
    workspace._exchange = wrapped(workspace._exchange, "exchange")


_steps: list[str] = []


def list_steps(plan: Path, options: dict[str, Any], *hooks: Any) -> list[str]:
    """The steps of a run that change the disk, in order."""
    run_with(plan, options, *hooks, (die_at, (0, "before")))
    return _steps


def without_exchange(_: None) -> None:
    """As on systems that cannot swap two names in one step."""
    workspace._exchange = lambda first, second: False


def fail_os(failure: tuple[str, int, int]) -> None:
    """The n-th call of an os function fails with an errno, and so do all after it."""
    name, at, code = failure
    function = getattr(os, name)
    calls = [0]

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] >= at:
            raise OSError(code, os.strerror(code))
        return function(*args, **kwargs)

    setattr(os, name, failing)
    if name == "pwrite":
        loop = native.Library.run

        def block(*args: Any) -> None:
            calls[0] += 1
            if calls[0] >= at:
                args[-1].kind, args[-1].which, args[-1].error = native.CANNOT_WRITE, 0, code
            else:
                loop(*args)

        native.Library.run = block  # type: ignore[method-assign]


def clear(paths: Sequence[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def run_limited(plan: Path, options: dict[str, Any], extra: int) -> Any:
    return run_plan(plan, (limit_data, extra), **options)


def execute_expression(
    folder: Path, kind: str, shape: tuple[int, ...], dtype: str, count: int, options: dict[str, int]
) -> int:
    """Schedule and execute ``count`` outputs over files of random bytes: the projected bytes."""
    from mergeengine.compiler.graph import Graph, OutputTensor, compute_dtype
    from mergeengine.compiler.schedule import schedule
    from mergeengine.execution.executor import execute
    from mergeengine.lazy import algebra
    from mergeengine.lazy.dtypes import BY_NAME
    from mergeengine.lazy.stored import Stored, StoredFile
    from mergeengine.lazy.tensor import LazyTensor

    def leaf(name: str) -> LazyTensor:
        path = folder / name
        file = StoredFile(path, path.stat().st_size)
        return LazyTensor(algebra.stored(Stored("test", name, BY_NAME[dtype], shape, file, 0)))

    def expression(a: LazyTensor, b: LazyTensor) -> LazyTensor:
        delta = b - a
        match kind:
            case "norm":
                return a + delta * (1.0 / delta.norm())
            case "kth_magnitude":
                threshold = delta.kth_magnitude(a.node.numel // 5)
                return a + (abs(delta) >= threshold).where(delta, 0.0)
            case "row_sum":
                return a + delta / (delta * delta).row_sum().sqrt()
            case "column_sum":
                return a + delta / (delta * delta).column_sum().sqrt()
            case "low_rank":
                return a + delta.low_rank(8)
            case "permute":
                return a.permute(1, 0) + delta.permute(1, 0)
        raise AssertionError(kind)

    class Nowhere:
        def is_done(self, tensor: int, chunk: int) -> bool:
            return False

        def write(self, tensor: int, first_chunk: int, data: memoryview, notes: Any) -> None:
            pass

    outputs = []
    for number in range(count):
        node = expression(leaf(f"{number}a"), leaf(f"{number}b")).node
        compute = compute_dtype(BY_NAME[dtype])
        outputs.append(OutputTensor(f"out{number}", BY_NAME[dtype], compute, node))
    planned = schedule(Graph(tuple(outputs)), **options)
    execute(planned, Nowhere())
    return planned.projected_bytes


def recall_chunks(folder: Path, count: int) -> int:
    """Resume an output of ``count`` chunks that are all there: the bytes kept."""
    from mergeengine.lazy.dtypes import BY_NAME
    from mergeengine.lazy.partition import CHUNK
    from mergeengine.output.journal import Journal, chunk_digest
    from mergeengine.output.layout import lay_out

    zeros = bytes(CHUNK)
    # The disk has a hole, and reading and hashing it is not what is measured.
    os.posix_fallocate = lambda *_: None
    writer._read_at = lambda descriptor, size, offset: zeros
    digest = chunk_digest(zeros)
    writer.chunk_digest = lambda data: digest

    def note(chunk: int) -> str:
        return json.dumps({"sums": [1e-7 / (chunk + 3), 0.1 / (chunk + 7)]}, separators=(",", ":"))

    layout = lay_out([("w", BY_NAME["uint8"], (count, CHUNK))], count * CHUNK)
    with workspace.Workspace(folder / "out") as place:
        journal = Journal(place.journal, "key")
        for chunk in range(count):
            journal.record(0, chunk, [digest], [note(chunk)])
        journal.close()
        with writer.ShardWriter(place, layout, "key") as resumed:
            return resumed.kept_bytes


def projection(plan: Path, options: dict[str, Any]) -> int:
    """The projected bytes of a plan."""
    from mergeengine.plan.load import load_plan
    from mergeengine.workflow.prepare import prepare
    from mergeengine.workflow.settings import Settings

    return prepare(load_plan(plan), Settings(**options)).schedule.projected_bytes


def take(size: int) -> int:
    """Take and touch so much memory: its size."""
    return len(bytearray(b"x") * size)


def default_budget() -> int:
    from mergeengine.workflow.settings import Settings

    return Settings().memory_budget
