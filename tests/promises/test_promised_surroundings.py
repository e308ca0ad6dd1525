"""Full disks, read-only folders, changing inputs, other runs: clear errors, and nothing lost."""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import children
import pytest
from children import Child
from lineage import (
    CHUNK,
    Lineage,
    hashes,
    leftovers,
    make_lineage,
    random_tensors,
    weights,
    write_model,
)
from safetensors.torch import load_file, save_file

from mergeengine.errors import (
    CheckpointError,
    InputChangedError,
    MergeEngineError,
    OutputBusyError,
    OutputError,
    ResourceError,
)
from mergeengine.execution.reader import Reader
from mergeengine.output.writer import ShardWriter
from mergeengine.workflow.run import run

SHAPES = {f"layers.{n}.weight": (CHUNK + 7,) for n in range(3)}


@pytest.fixture
def lineage(tmp_path: Path) -> Lineage:
    return make_lineage(tmp_path / "work", SHAPES)


@pytest.fixture
def expected(lineage: Lineage, tmp_path: Path) -> dict[str, str]:
    """What an undisturbed run gives."""
    run(lineage.plan, output=tmp_path / "expected", device="cpu")
    return hashes(tmp_path / "expected")


def older_output(lineage: Lineage) -> dict[str, str]:
    """Put an output of an earlier version of the plan in place."""
    lineage.replan(scaling=0.5)
    run(lineage.plan, device="cpu")
    lineage.replan()
    return hashes(lineage.out)


# --- disks ---------------------------------------------------------------------------------

Failure = tuple[str, int, int]
FAILURES: dict[str, tuple[Failure, str]] = {
    "full when space is taken": (("posix_fallocate", 1, errno.ENOSPC), "the disk is full"),
    "full when data are written": (("pwrite", 4, errno.ENOSPC), "the disk is full"),
    "full when the journal is written": (("write", 3, errno.ENOSPC), "the disk is full"),
    "quota exceeded": (("pwrite", 4, errno.EDQUOT), "the disk is full"),
    "broken when synced": (("fsync", 1, errno.EIO), "Input/output error"),
    "broken when the companions are synced": (("fsync", 2, errno.EIO), "Input/output error"),
    "broken when the folder is synced": (("fsync", 5, errno.EIO), "Input/output error"),
    "no permission": (("mkdir", 1, errno.EACCES), "permission denied"),
    "read-only": (("mkdir", 1, errno.EROFS), "read-only"),
    "no permission for files": (("ftruncate", 1, errno.EPERM), "permission denied"),
}


@pytest.mark.parametrize("with_old", [False, True], ids=["nothing before", "an older output"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_disk_that_fails(
    failure: str, with_old: bool, lineage: Lineage, expected: dict[str, str]
) -> None:
    old = older_output(lineage) if with_old else None
    hook, sentence = FAILURES[failure]
    options = {"workers": 1, "block_chunks": 1}
    answer = children.call(children.run_with, lineage.plan, options, (children.fail_os, hook))
    assert answer[0] == "OutputError", answer
    assert sentence in answer[1]
    assert str(lineage.folder) in answer[1]
    assert (hashes(lineage.out) if lineage.out.exists() else None) == old
    report = run(lineage.plan, device="cpu").report
    assert hashes(lineage.out) == expected
    assert leftovers(lineage.folder) == []
    if hook[0] == "pwrite":
        assert report["bytes"]["kept_from_earlier_run"] > 0


@pytest.mark.parametrize("code", [errno.EACCES, errno.EBUSY, errno.EXDEV])
def test_a_final_name_that_cannot_be_given(
    code: int, lineage: Lineage, expected: dict[str, str]
) -> None:
    answer = children.call(
        children.run_with, lineage.plan, {}, (children.fail_os, ("rename", 1, code))
    )
    assert answer is not None, "the error was not one of mergeengine's"
    assert answer[0] == "OutputError", answer
    assert not lineage.out.exists()
    report = run(lineage.plan, device="cpu").report
    assert report["bytes"]["written"] == 0
    assert hashes(lineage.out) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of eight mebibytes; the output takes six."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        done = False
    if not done:
        pytest.skip("mounting a file system is not possible here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_too_small_is_found_before_data_are_read(
    lineage: Lineage, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small_disk / "ballast").write_bytes(bytes(4 << 20))
    monkeypatch.setattr(Reader, "read_into", _never)
    with pytest.raises(ResourceError, match=r"are needed here .* are free"):
        run(lineage.plan, output=small_disk / "out", device="cpu")
    assert not (small_disk / "out").exists()


def test_a_disk_that_fills_up_in_between(
    lineage: Lineage, small_disk: Path, expected: dict[str, str]
) -> None:
    """Somebody else takes all that is left once the weights have their place."""

    def ballast(phase: str, done: int, total: int) -> None:
        if phase == "sealing":
            with (
                (small_disk / "ballast").open("wb", buffering=0) as file,
                suppress(OSError),
            ):
                while file.write(bytes(4096)):
                    pass

    with pytest.raises(OutputError, match="the disk is full"):
        run(lineage.plan, output=small_disk / "out", device="cpu", progress=ballast)
    assert not (small_disk / "out").exists()
    (small_disk / "ballast").unlink()
    result = run(lineage.plan, output=small_disk / "out", device="cpu")
    assert result.report["bytes"]["written"] == 0
    assert hashes(small_disk / "out") == expected


def test_a_disk_that_is_read_only(lineage: Lineage, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OutputError, match="read-only"):
        run(lineage.plan, output=small_disk / "out", device="cpu")


def test_a_missing_parent_is_made(lineage: Lineage, expected: dict[str, str]) -> None:
    run(lineage.plan, output=lineage.folder / "not" / "yet" / "there", device="cpu")
    assert hashes(lineage.folder / "not" / "yet" / "there") == expected


@pytest.mark.parametrize("place", ["in the way/out", "in the way/deeper/out"])
def test_a_file_in_the_way_of_the_parent(place: str, lineage: Lineage) -> None:
    (lineage.folder / "in the way").write_text("precious")
    with pytest.raises(OutputError, match="a file is in the way"):
        run(lineage.plan, output=lineage.folder / place, device="cpu")
    assert (lineage.folder / "in the way").read_text() == "precious"


def test_a_file_in_the_way_of_the_workspace(lineage: Lineage) -> None:
    lineage.partial.write_text("precious")
    with pytest.raises(OutputError, match="a file is in the way"):
        run(lineage.plan, device="cpu")
    assert lineage.partial.read_text() == "precious"


# --- inputs --------------------------------------------------------------------------------


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _touch(path: Path) -> None:
    os.utime(path)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _rewrite(path: Path) -> None:
    """In place, the same size: other values from here on."""
    with path.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(os.urandom(1000))


def _replace(path: Path) -> None:
    other = path.with_suffix(".other")
    save_file(random_tensors(SHAPES, 99), other, metadata={"format": "pt"})
    assert other.stat().st_size == path.stat().st_size
    other.replace(path)


def _remove(path: Path) -> None:
    path.unlink()


CHANGES = [_append, _touch, _truncate, _rewrite, _replace, _remove]


def _slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    write = ShardWriter.write

    def slow(self: ShardWriter, *args: Any) -> None:
        time.sleep(0.005)  # longer than the clock of the file system takes to tick
        write(self, *args)

    monkeypatch.setattr(ShardWriter, "write", slow)


@pytest.mark.parametrize("role", ["target", "ft"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("moment", ["at the first block", "in the middle", "at the last block"])
def test_an_input_that_changes_while_it_is_read(
    moment: str,
    change: Callable[[Path], None],
    role: str,
    lineage: Lineage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _slowly(monkeypatch)
    path = lineage.folder / role / "model.safetensors"
    before = path.read_bytes()
    at = {"at the first block": 1, "in the middle": 3, "at the last block": 6}[moment]
    blocks = []

    def progress(phase: str, done: int, total: int) -> None:
        if phase == "merging" and done:
            blocks.append(done)
            if len(blocks) == at:
                change(path)

    with pytest.raises(InputChangedError, match=r"model\.safetensors"):
        run(lineage.plan, device="cpu", workers=1, block_chunks=1, progress=progress)
    assert len(blocks) >= at
    assert not lineage.out.exists()
    path.unlink(missing_ok=True)
    path.write_bytes(before)
    run(lineage.plan, device="cpu")
    assert weights(lineage.out) == _formula(lineage)
    assert leftovers(lineage.folder) == []


def _formula(lineage: Lineage) -> dict[str, bytes]:
    """The merged weights, by torch in memory, as ``weights`` gives them."""
    loaded = {
        role: load_file(lineage.folder / role / "model.safetensors")
        for role in ("target", "base", "ft")
    }
    merged = {
        name: (target.float() + (loaded["ft"][name].float() - loaded["base"][name].float())).to(
            target.dtype
        )
        for name, target in loaded["target"].items()
    }
    folder = lineage.folder / "formula"
    children.clear([folder])
    return weights(write_model(folder, merged))


def test_the_formula_agrees_with_an_undisturbed_run(lineage: Lineage) -> None:
    run(lineage.plan, device="cpu")
    assert weights(lineage.out) == _formula(lineage)


@pytest.mark.parametrize("moment", ["before the merge", "while an older output is checked"])
def test_an_input_that_changes_after_its_header_was_read(
    moment: str, lineage: Lineage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing, checking and downloading take their time: what was pinned must be what is read."""
    from mergeengine.workflow import produce

    path = lineage.folder / "ft" / "model.safetensors"
    phases: list[str] = []
    if moment.startswith("before"):
        check_disk = produce.check_disk

        def changing(job: produce.Job) -> None:
            _replace(path)
            check_disk(job)

        monkeypatch.setattr(produce, "check_disk", changing)
        progress = None
    else:
        older_output(lineage)

        def progress(phase: str, done: int, total: int) -> None:
            if phase == "checking":
                phases.append(phase)
                if len(phases) == 1:
                    _replace(path)

    before = hashes(lineage.out) if lineage.out.exists() else None
    with pytest.raises(InputChangedError):
        run(lineage.plan, device="cpu", progress=progress)
    assert (hashes(lineage.out) if lineage.out.exists() else None) == before


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _header(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        text = change(data[8 : 8 + length])
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return changed


HEADERS: dict[str, Callable[[bytes], bytes]] = {
    "truncated": _cut,
    "empty": lambda data: b"",
    "too long": lambda data: data + b"x",
    "a longer tensor": _header(lambda text: text.replace(b"[1048583]", b"[1048584]", 1)),
    "a huge tensor": _header(lambda text: text.replace(b"[1048583]", b"[9223372036854775807]", 1)),
    "another dtype": _header(lambda text: text.replace(b"BF16", b"F32", 1)),
    "an unknown dtype": _header(lambda text: text.replace(b"BF16", b"F4", 1)),
    "not JSON": _header(lambda text: text[:-5]),
    "a header of exabytes": lambda data: (1 << 60).to_bytes(8, "little") + data[8:],
    "random bytes": lambda data: os.urandom(1000),
}


@pytest.mark.parametrize("lie", HEADERS)
def test_a_lying_header_is_found_before_data_are_read(
    lie: str, lineage: Lineage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reader, "read_into", _never)
    path = lineage.folder / "ft" / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(HEADERS[lie](data))
    assert path.read_bytes() != data
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        run(lineage.plan, device="cpu")
    assert not lineage.out.exists()
    assert leftovers(lineage.folder) == []


def _never(*_: Any) -> None:
    raise AssertionError("data were read")


# --- two runs ------------------------------------------------------------------------------


def test_a_second_run_on_one_output_is_turned_away(
    lineage: Lineage, expected: dict[str, str]
) -> None:
    slow = (children.slow_writes, 0.1)
    first = Child(children.run_with, lineage.plan, {"workers": 1, "block_chunks": 1}, slow).go()
    while not list(lineage.partial.glob("files/*.safetensors")):
        time.sleep(0.005)
    with pytest.raises(OutputBusyError, match="another run is writing") as caught:
        run(lineage.plan, device="cpu")
    assert caught.value.exit_code == 6
    run(lineage.plan, output=lineage.folder / "other", device="cpu")  # another output may be made
    assert first.answer()[0] is True
    assert hashes(lineage.out) == expected == hashes(lineage.folder / "other")
    assert not run(lineage.plan, device="cpu").made


def _race(lineage: Lineage, expected: dict[str, str], rounds: int) -> set[object]:
    seen: set[object] = set()
    for _ in range(rounds):
        children.clear([lineage.out])
        runs = [Child(children.run_with, lineage.plan, {"workers": 1}) for _ in range(4)]
        for child in runs:
            child.go()
        answers = [child.answer() for child in runs]
        assert None not in answers, "an error that was not one of mergeengine's"
        outcomes = [answer[0] for answer in answers]
        assert True in outcomes
        assert set(outcomes) <= {True, False, "OutputBusyError"}, answers
        assert hashes(lineage.out) == expected
        assert leftovers(lineage.folder) == []
        seen |= set(outcomes)
    return seen


def test_four_runs_at_once(lineage: Lineage, expected: dict[str, str]) -> None:
    assert "OutputBusyError" in _race(lineage, expected, 6)


@pytest.mark.slow
def test_four_runs_at_once_again_and_again(lineage: Lineage, expected: dict[str, str]) -> None:
    _race(lineage, expected, 300)


def test_a_run_that_comes_while_another_clears_up(
    lineage: Lineage, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens the lock again in the folder that is just being removed."""
    rmdir = os.rmdir

    def late(path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(os.fspath(path)).name == lineage.partial.name and lineage.partial.exists():
            (lineage.partial / "lock").touch()
        rmdir(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", late)
        assert run(lineage.plan, device="cpu").made
    assert hashes(lineage.out) == expected


def test_a_lock_is_free_when_its_holder_is_dead(lineage: Lineage) -> None:
    slow = (children.slow_writes, 5)
    child = Child(children.run_with, lineage.plan, {}, slow).go()
    while not (lineage.partial / "lock").exists():
        time.sleep(0.005)
    child.kill()
    assert run(lineage.plan, device="cpu").made


def test_errors_leave_no_lock_behind(lineage: Lineage, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same process, too: a library's user may catch the error and go on."""
    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "record", _fail)
        with pytest.raises(MergeEngineError):
            run(lineage.plan, device="cpu")
    before = _open_files()
    assert run(lineage.plan, device="cpu").made
    shutil.rmtree(lineage.out)
    assert run(lineage.plan, device="cpu").made
    assert _open_files() <= before


def _open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def _fail(*_: Any) -> None:
    raise OutputError("no more")
