"""Killed at any moment: nothing half-made under the final name, and the next run is the same."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import children
import pytest
from children import Child
from lineage import CHUNK, Lineage, hashes, leftovers, make_lineage

from mergeengine.output import workspace
from mergeengine.output.workspace import Workspace
from mergeengine.output.writer import ShardWriter
from mergeengine.workflow.run import run

OUTPUT = {"path": "./out", "shard_size": "2MB"}


@dataclass(frozen=True)
class Case:
    """A lineage whose plan gives ``new``; ``old`` is what the same plan gave before a change."""

    lineage: Lineage
    new: dict[str, str]
    old: dict[str, str]
    old_copy: Path

    def reset(self, *, with_old: bool) -> None:
        children.clear([self.lineage.partial, self.lineage.out])
        if with_old:
            shutil.copytree(self.old_copy, self.lineage.out)

    def state(self) -> str:
        """What is under the final name."""
        if not self.lineage.out.exists():
            return "nothing"
        found = hashes(self.lineage.out)
        return "new" if found == self.new else "old" if found == self.old else "broken"


def make_case(folder: Path, shapes: dict[str, tuple[int, ...]]) -> Case:
    lineage = make_lineage(folder, shapes, scaling=0.5, output=OUTPUT)
    old_copy = folder / "old"
    run(lineage.plan, device="cpu", output=old_copy)
    lineage.replan(output=OUTPUT)
    run(lineage.plan, device="cpu")
    return Case(lineage, hashes(lineage.out), hashes(old_copy), old_copy)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("small")
    return make_case(folder, {"a": (CHUNK + 5,), "b": (3, 5)})


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("larger")
    yield make_case(folder, {f"layers.{n}.weight": (2100, 1000) for n in range(10)})
    shutil.rmtree(folder)


# --- SIGKILL at random moments -------------------------------------------------------------


def _kill_again_and_again(case: Case, kills: int, seed: int) -> int:
    """Kill runs of one output until enough were; returns the bytes that later runs kept."""
    chance = random.Random(seed)
    killed = kept = 0
    while killed < kills:
        with_old = chance.random() < 0.5
        case.reset(with_old=with_old)
        finished = False
        while not finished:
            options = {"workers": chance.choice([1, 1, 3]), "block_chunks": chance.choice([1, 4])}
            slow = (children.slow_writes, 0.01 * options["workers"])
            journal = case.lineage.partial / "journal"
            before = _size(journal)
            child = Child(children.run_with, case.lineage.plan, options, slow).go()
            if chance.random() < 0.5:  # else at any moment, on a slow machine before all chunks
                while _size(journal) <= before and not child.ended():
                    time.sleep(0.005)
            time.sleep(chance.random() * 0.4)
            if killed < kills and not child.ended():
                child.kill()
                killed += 1
                expected = {"old"} if with_old else {"nothing"}
                assert case.state() in expected | {"new"}
            else:
                answer = child.answer()
                assert isinstance(answer[0], bool), answer
                kept += answer[1]["bytes"]["kept_from_earlier_run"]
                finished = True
        assert case.state() == "new"
    return kept


def test_killed_at_random_moments(larger: Case) -> None:
    assert _kill_again_and_again(larger, kills=26, seed=1) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 7))
def test_killed_at_many_random_moments(larger: Case, seed: int) -> None:
    assert _kill_again_and_again(larger, kills=100, seed=seed) > 0


def test_interrupted_by_ctrl_c(larger: Case) -> None:
    larger.reset(with_old=True)
    slow = (children.slow_writes, 0.2)  # or it may be done before the signal comes
    child = Child(children.run_with, larger.lineage.plan, {"workers": 2}, slow).go()
    while not list(larger.lineage.partial.glob("files/*.safetensors")):
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(child.pid, signal.SIGINT)
    name, text = child.answer()
    assert name == "Interrupted"
    assert "run the same command again" in text
    assert larger.state() == "old"
    assert run(larger.lineage.plan, device="cpu").report["bytes"]["kept_from_earlier_run"] > 0
    assert larger.state() == "new"
    assert leftovers(larger.lineage.folder) == []


# --- at each single step that changes the disk ---------------------------------------------

Hooks = list[tuple[Callable[..., None], Any]]
WAYS: dict[str, tuple[bool, Hooks, set[str]]] = {
    # (an older output is there, hooks, what the final name may hold when killed)
    "nothing before": (False, [], {"nothing", "new"}),
    "an older output": (True, [], {"old", "new"}),
    # Two renames instead of one exchange: for a moment the old output is aside, and comes back.
    "an older output, no exchange": (
        True,
        [(children.without_exchange, None)],
        {"old", "new", "nothing"},
    ),
}


@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=[pytest.mark.slow] * (way != "an older output")) for way in WAYS],
)
def test_killed_at_every_step(way: str, small: Case) -> None:
    with_old, hooks, allowed = WAYS[way]
    plan, options = small.lineage.plan, {"workers": 1, "block_chunks": 1}
    small.reset(with_old=with_old)
    steps = children.call(children.list_steps, plan, options, *hooks)
    assert {"pwrite", "write", "fsync"} <= set(steps)
    moments = [(number, "before") for number in range(1, len(steps) + 1)]
    moments += [(n, "torn") for n, step in enumerate(steps, 1) if step in ("pwrite", "write")]
    moments.append((len(steps), "after"))
    seen = set()
    for moment in moments:
        small.reset(with_old=with_old)
        child = Child(children.run_with, plan, options, *hooks, (children.die_at, moment)).go()
        child.answer()
        assert child.process.exitcode == 9, moment
        assert small.state() in allowed, moment
        seen.add(small.state())
        run(plan, device="cpu")
        assert small.state() == "new", moment
    assert seen == allowed


@pytest.mark.parametrize("with_old", [False, True], ids=["nothing before", "an older output"])
def test_what_a_killed_run_leaves_is_cleared_by_the_next(with_old: bool, small: Case) -> None:
    """Killed after the exchange: an older model, of full size, lies in the workspace."""
    small.reset(with_old=with_old)
    plan, options = small.lineage.plan, {"workers": 1}
    steps = children.call(children.list_steps, plan, options)
    installed = len(steps) - 1 - steps[::-1].index("exchange" if with_old else "rename")
    small.reset(with_old=with_old)
    dying = (children.die_at, (installed + 1, "after"))
    Child(children.run_with, plan, options, dying).go().answer()
    assert small.state() == "new"
    run(plan, device="cpu")
    assert small.state() == "new"
    assert leftovers(small.lineage.folder) == []


def test_replacing_twice_without_exchange(small: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first replacement set aside, and could not remove, does not hinder the second."""
    small.reset(with_old=True)
    monkeypatch.setattr(workspace, "_exchange", lambda first, second: False)
    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "discard", _die)
        with pytest.raises(_DiedError):
            run(small.lineage.plan, device="cpu")
    small.lineage.replan(scaling=0.25, output=OUTPUT)
    try:
        assert run(small.lineage.plan, device="cpu").made
    finally:
        small.lineage.replan(output=OUTPUT)
    assert leftovers(small.lineage.folder) == []


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_links_in_a_replaced_folder_are_never_written_through(
    link: str, small: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of links (a hub cache, cp -al) was replaced by a run that died right after."""
    small.reset(with_old=False)
    precious = tmp_path / "precious.safetensors"
    precious.write_bytes(b"precious" * 100)
    out = small.lineage.out
    out.mkdir()
    # The first shard of the new output has this name too.
    place = out / sorted(name for name in small.new if name.endswith(".safetensors"))[0]
    if link == "symbolic":
        place.symlink_to(precious)
    else:
        place.hardlink_to(precious)
    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "discard", _die)
        with pytest.raises(_DiedError):
            run(small.lineage.plan, device="cpu", force=True)
    assert small.state() == "new"
    shutil.rmtree(out)
    run(small.lineage.plan, device="cpu")
    assert precious.read_bytes() == b"precious" * 100
    assert small.state() == "new"


class _DiedError(BaseException):
    """Stands for the end of the process."""


def _die(*_: Any) -> None:
    raise _DiedError


# --- what may lie in the workspace ---------------------------------------------------------


@pytest.fixture
def interrupted(small: Case, monkeypatch: pytest.MonkeyPatch) -> Case:
    """Of the output's three blocks two are written and journalled."""
    small.reset(with_old=False)
    record = ShardWriter.record
    written = []

    def failing(self: ShardWriter, *args: Any) -> None:
        if len(written) == 2:
            raise _DiedError
        record(self, *args)
        written.append(args)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "record", failing)
        with pytest.raises(_DiedError):
            run(small.lineage.plan, device="cpu", workers=1, block_chunks=1)
    return small


def _kept(case: Case) -> int:
    result = run(case.lineage.plan, device="cpu")
    assert case.state() == "new"
    assert leftovers(case.lineage.folder) == []
    kept: int = result.report["bytes"]["kept_from_earlier_run"]
    return kept


WHOLE = 2 * CHUNK


def test_finished_chunks_are_kept(interrupted: Case) -> None:
    assert _kept(interrupted) == WHOLE + 10


JOURNALS: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    # (what becomes of the journal, bytes that are kept)
    "last line truncated": (lambda text: text[:-9], WHOLE),
    "without its last newline": (lambda text: text[:-1], WHOLE),
    "garbage behind": (lambda text: text + os.urandom(4000), WHOLE + 10),
    "garbage lines behind": (lambda text: text + b"\n1 2\n-1 0 ff\n0 x y\n\0\n9 9 9", WHOLE + 10),
    "garbage alone": (lambda text: os.urandom(4000), 0),
    "empty": (lambda text: b"", 0),
    "key alone": (lambda text: text.splitlines(keepends=True)[0], 0),
    "another version": (lambda text: text.replace(b"journal 2", b"journal 1"), 0),
    "another key": (lambda text: text.replace(b"sha256:", b"sha255:"), 0),
    "claims of chunks never written": (
        lambda text: text + b"".join(b"%d %d %s\n" % (t, c, b"ab" * 16) for t, c in [(1, 0)]),
        WHOLE + 10,
    ),
    "claims beyond the output": (
        lambda text: text + b"7 0 %s\n0 %d %s\n" % (b"ab" * 16, 10**20, b"ab" * 16),
        WHOLE + 10,
    ),
    "a false claim after a true one": (
        lambda text: text + b"0 0 " + b"ab" * 16 + b"\n",
        10,
    ),
    "every line twice": (
        lambda text: text + b"".join(text.splitlines(keepends=True)[1:]),
        WHOLE + 10,
    ),
}


@pytest.mark.parametrize("journal", JOURNALS)
def test_a_journal_is_not_believed_unseen(journal: str, interrupted: Case) -> None:
    change, kept = JOURNALS[journal]
    path = interrupted.lineage.partial / "journal"
    path.write_bytes(change(path.read_bytes()))
    assert _kept(interrupted) == kept


def test_a_journal_that_is_a_folder(interrupted: Case) -> None:
    path = interrupted.lineage.partial / "journal"
    path.unlink()
    (path / "deep").mkdir(parents=True)
    answer = children.call(children.run_with, interrupted.lineage.plan, {})
    assert answer[0] in (True, "OutputError"), answer
    assert interrupted.state() in ("new", "nothing")


def _shards(case: Case) -> list[Path]:
    return sorted(case.lineage.partial.glob("files/*.safetensors"))


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


FILES: dict[str, Callable[[Case], object]] = {
    "a flipped byte in a finished chunk": lambda case: _flip(_shards(case)[0], 3000),
    "a flipped byte in a header": lambda case: _flip(_shards(case)[0], 20),
    "a shard cut off": lambda case: os.truncate(_shards(case)[0], 5000),
    "a shard too long": lambda case: os.truncate(_shards(case)[0], 9_000_000),
    "a shard gone": lambda case: _shards(case)[0].unlink(),
    "all files gone": lambda case: shutil.rmtree(case.lineage.partial / "files"),
    "the journal gone": lambda case: (case.lineage.partial / "journal").unlink(),
    "the lock gone": lambda case: (case.lineage.partial / "lock").unlink(),
    "other files": lambda case: shutil.copytree(
        case.lineage.folder / "ft", case.lineage.partial / "files" / "deep"
    ),
    "another shard": lambda case: shutil.copy(
        case.lineage.folder / "ft" / "model.safetensors", case.lineage.partial / "files"
    ),
}


@pytest.mark.parametrize("change", FILES)
def test_whatever_happened_to_the_files(change: str, interrupted: Case) -> None:
    FILES[change](interrupted)
    _kept(interrupted)


def test_what_another_plan_left(small: Case, interrupted: Case) -> None:
    interrupted.lineage.replan(scaling=0.5, output=OUTPUT)
    try:
        result = run(interrupted.lineage.plan, device="cpu")
    finally:
        interrupted.lineage.replan(output=OUTPUT)
    assert result.report["bytes"]["kept_from_earlier_run"] == 0
    assert {n: d for n, d in hashes(interrupted.lineage.out).items() if "safetensors" in n} == {
        n: d for n, d in interrupted.old.items() if "safetensors" in n
    }


def test_what_was_made_of_other_inputs_is_not_kept(interrupted: Case) -> None:
    """Even where the input is the same again, byte by byte: its time differs."""
    os.utime(interrupted.lineage.folder / "ft" / "model.safetensors")
    assert _kept(interrupted) == 0


def test_another_cut_into_blocks_goes_on_all_the_same(small: Case) -> None:
    small.reset(with_old=False)
    plan = small.lineage.plan
    steps = children.call(children.list_steps, plan, {"workers": 1, "block_chunks": 1})
    small.reset(with_old=False)
    last = len(steps) - steps[::-1].index("pwrite")
    dying = (children.die_at, (last, "before"))
    Child(children.run_with, plan, {"workers": 1, "block_chunks": 1}, dying).go().answer()
    result = run(plan, device="cpu", workers=5, block_chunks=4)
    assert result.report["bytes"]["kept_from_earlier_run"] > 0
    assert small.state() == "new"
