"""What lies at the output's place is kept, replaced, or left alone, as the README says."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import children
import pytest
from lineage import (
    CONFIG,
    Lineage,
    hashes,
    leftovers,
    make_lineage,
    random_tensors,
    write_model,
    write_plan,
)

from mergeengine.errors import MergeEngineError, OutputError
from mergeengine.execution.reader import Reader
from mergeengine.workflow.run import run

SHAPES = {"layers.0.weight": (100, 30), "layers.1.weight": (7,)}


@pytest.fixture
def lineage(tmp_path: Path) -> Lineage:
    return make_lineage(tmp_path / "work", SHAPES)


@pytest.fixture
def made(lineage: Lineage) -> Lineage:
    run(lineage.plan, device="cpu")
    return lineage


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    paths = [folder, *folder.rglob("*")]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in paths}


# --- up to date ----------------------------------------------------------------------------


def test_an_output_that_is_up_to_date_is_not_touched(
    made: Lineage, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stamps(made.folder)
    monkeypatch.setattr(Reader, "read_into", _never)
    result = run(made.plan, device="cpu")
    assert not result.made
    assert not any(result.report["bytes"].values())
    assert not run(made.plan, device="cpu", memory=1 << 30, workers=5).made
    assert stamps(made.folder) == before


def test_force_makes_it_anew_all_the_same(made: Lineage) -> None:
    """The way to repair an output that a disk has damaged where no sample sees it."""
    before = hashes(made.out)
    _flip_last_bit(made.out / "model.safetensors")
    assert run(made.plan, device="cpu", force=True).made
    assert hashes(made.out) == before


def test_an_input_written_since_is_noticed_whatever_its_sample(tmp_path: Path) -> None:
    """A change between the samples: the digest is the same, the time is not."""
    lineage = make_lineage(tmp_path / "work", {"w": (40_000,)})
    run(lineage.plan, device="cpu")
    before = hashes(lineage.out)
    with (lineage.folder / "ft" / "model.safetensors").open("r+b") as file:
        file.seek(-70_000, os.SEEK_END)
        file.write(bytes(64))
    assert run(lineage.plan, device="cpu").made
    assert hashes(lineage.out) != before


def test_what_is_up_to_date_is_found_without_torch(made: Lineage) -> None:
    code = (
        "import sys; from mergeengine.workflow.run import run; made = run(sys.argv[1]).made; "
        "print(made, sorted({'torch', 'transformers', 'safetensors', 'numpy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(made.plan)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "False []\n"


def test_copies_of_inputs_and_output_are_up_to_date(made: Lineage, tmp_path: Path) -> None:
    shutil.copytree(made.folder, tmp_path / "copy")
    assert not run(tmp_path / "copy" / "plan.yaml", device="cpu").made


def _never(*_: Any) -> None:
    raise AssertionError("data were read")


# --- changes that must be noticed ----------------------------------------------------------


def _other_values(lineage: Lineage) -> None:
    shutil.rmtree(lineage.folder / "ft")
    write_model(lineage.folder / "ft", random_tensors(SHAPES, 50))


def _other_file(name: str, document: object) -> Callable[[Lineage], None]:
    def change(lineage: Lineage) -> None:
        (lineage.folder / name).write_text(json.dumps(document))

    return change


INPUT_CHANGES: dict[str, Callable[[Lineage], object]] = {
    "scaling": lambda lineage: lineage.replan(scaling=0.5),
    "masks": lambda lineage: lineage.replan(masks=[{"layers": 0, "scale": 0.0}]),
    "dtype": lambda lineage: lineage.replan(output={"path": "./out", "dtype": "float32"}),
    "shard size": lambda lineage: lineage.replan(output={"path": "./out", "shard_size": "1KB"}),
    "values": _other_values,
    "config": _other_file("target/config.json", {**CONFIG, "rope_theta": 5.0}),
    "generation config": _other_file("ft/generation_config.json", {"eos_token_id": [2, 3]}),
    "tokenizer": _other_file("ft/tokenizer_config.json", {"chat_template": "{{ new }}"}),
}


@pytest.mark.parametrize("change", INPUT_CHANGES)
def test_a_change_makes_the_output_anew(change: str, made: Lineage, tmp_path: Path) -> None:
    (made.folder / "ft" / "tokenizer_config.json").write_text('{"chat_template": "{{ old }}"}')
    (made.folder / "ft" / "tokenizer.json").write_text("{}")
    run(made.plan, device="cpu")
    before = hashes(made.out)
    INPUT_CHANGES[change](made)
    assert run(made.plan, device="cpu").made
    assert hashes(made.out) != before
    run(made.plan, output=tmp_path / "afresh", device="cpu")
    assert hashes(made.out) == hashes(tmp_path / "afresh")
    assert leftovers(made.folder) == []


# --- what may not be replaced --------------------------------------------------------------


def _foreign_folder(place: Path) -> None:
    (place / "deep").mkdir(parents=True)
    (place / "deep" / "precious.txt").write_text("precious")


def _foreign_model(place: Path) -> None:
    write_model(place, random_tensors(SHAPES, 1))


def _foreign_file(place: Path) -> None:
    place.write_text("precious")


def _link_to_folder(place: Path) -> None:
    _foreign_folder(place.parent / "elsewhere")
    place.symlink_to("elsewhere")


def _dangling_link(place: Path) -> None:
    place.symlink_to("nowhere")


def _broken_manifest(place: Path) -> None:
    _foreign_folder(place)
    (place / "mergeengine.json").write_text("[1, 2")


def _manifest_of_another_version(place: Path) -> None:
    _foreign_folder(place)
    (place / "mergeengine.json").write_text('{"format": 99}')


FOREIGN = [
    _foreign_folder,
    _foreign_model,
    _foreign_file,
    _link_to_folder,
    _dangling_link,
    _broken_manifest,
    _manifest_of_another_version,
]


def _picture(folder: Path) -> dict[str, str]:
    """Everything but the workspace's lock, which has its own test."""
    found = hashes(folder)
    found.pop(".out.partial/lock", None)
    return found


def test_a_refusal_leaves_nothing_behind(lineage: Lineage) -> None:
    _foreign_folder(lineage.out)
    with pytest.raises(OutputError):
        run(lineage.plan, device="cpu")
    assert leftovers(lineage.folder) == []


@pytest.mark.parametrize("there", FOREIGN, ids=lambda there: there.__name__.strip("_"))
def test_what_is_foreign_is_untouched_without_force(
    there: Callable[[Path], None], lineage: Lineage
) -> None:
    there(lineage.out)
    before = _picture(lineage.folder)
    with pytest.raises(OutputError, match=r"will not be replaced: .*--force"):
        run(lineage.plan, device="cpu")
    assert _picture(lineage.folder) == before


@pytest.mark.parametrize("there", FOREIGN, ids=lambda there: there.__name__.strip("_"))
def test_what_is_foreign_is_replaced_with_force(
    there: Callable[[Path], None], lineage: Lineage, tmp_path: Path
) -> None:
    there(lineage.out)
    elsewhere = lineage.folder / "elsewhere"
    before = hashes(elsewhere) if elsewhere.exists() else None
    assert run(lineage.plan, device="cpu", force=True).made
    run(lineage.plan, output=tmp_path / "afresh", device="cpu")
    assert hashes(lineage.out) == hashes(tmp_path / "afresh")
    assert leftovers(lineage.folder) == []
    assert (hashes(elsewhere) if elsewhere.exists() else None) == before


def test_an_empty_folder_is_no_obstacle(lineage: Lineage) -> None:
    lineage.out.mkdir()
    assert run(lineage.plan, device="cpu").made


def test_a_link_to_an_empty_folder_works_or_is_refused_before_the_merge(
    lineage: Lineage,
) -> None:
    """A prepared place on another disk."""
    (lineage.folder / "big disk").mkdir()
    lineage.out.symlink_to("big disk")
    answer = children.call(children.run_with, lineage.plan, {})
    assert answer is not None, "the error was not one of mergeengine's"
    if answer[0] == "OutputError":
        assert str(lineage.out) in answer[1]
        assert not list(lineage.partial.glob("files/*"))
    else:
        assert answer[0] is True
        assert (lineage.out / "model.safetensors").is_file()


def _edit(path: Path) -> None:
    path.write_text(path.read_text().replace("mergeengine", "somebody"))


def _flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


MODIFICATIONS: dict[str, Callable[[Path], object]] = {
    "an edited card": lambda out: _edit(out / "README.md"),
    "an edited config": lambda out: (out / "config.json").write_text("{}"),
    "a bit of the weights": lambda out: _flip_last_bit(out / "model.safetensors"),
    "an added file": lambda out: (out / "notes.txt").write_text("mine"),
    "an added file, hidden and deep": lambda out: (
        (out / "logs").mkdir(),
        (out / "logs" / ".run").write_text("mine"),
    ),
    "an added link": lambda out: (out / "link").symlink_to("../ft"),
    "a removed file": lambda out: (out / "config.json").unlink(),
    "removed weights": lambda out: (out / "model.safetensors").unlink(),
}


@pytest.mark.parametrize("modification", MODIFICATIONS)
def test_a_modified_output_is_not_replaced(modification: str, made: Lineage) -> None:
    MODIFICATIONS[modification](made.out)
    made.replan(scaling=0.5)
    before = _picture(made.folder)
    with pytest.raises(OutputError, match=r"will not be replaced: .*--force"):
        run(made.plan, device="cpu")
    assert _picture(made.folder) == before
    assert run(made.plan, device="cpu", force=True).made
    assert leftovers(made.folder) == []


def test_an_output_of_another_plan_is_not_replaced(made: Lineage) -> None:
    before = hashes(made.out)
    other = write_plan(made.folder, "other.yaml")
    with pytest.raises(OutputError, match=r"another plan \(plan\)"):
        run(other, device="cpu")
    assert hashes(made.out) == before


# --- what force must never do --------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True], ids=["without force", "with force"])
@pytest.mark.parametrize("place", ["ft", "target", "."])
def test_an_input_is_never_replaced(place: str, force: bool, lineage: Lineage) -> None:
    """The output's place is a model of the plan, or holds all of them and the plan."""
    before = _picture(lineage.folder)
    with pytest.raises(MergeEngineError):
        run(lineage.plan, output=lineage.folder / place, device="cpu", force=force)
    assert _picture(lineage.folder) == before


def test_an_older_output_is_whole_until_the_new_one_is(
    made: Lineage, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hashes(made.out)
    made.replan(scaling=0.5)
    seen = []

    def progress(phase: str, done: int, total: int) -> None:
        seen.append((phase, hashes(made.out) == before))

    run(made.plan, device="cpu", progress=progress)
    assert {phase for phase, _ in seen} >= {"checking", "merging", "sealing"}
    assert all(unchanged for _, unchanged in seen)
    assert hashes(made.out) != before


def test_permissions_are_the_users(made: Lineage) -> None:
    """Files are made as any program makes them: readable for whom the umask allows."""
    mask = os.umask(0)
    os.umask(mask)
    for path in made.out.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask
