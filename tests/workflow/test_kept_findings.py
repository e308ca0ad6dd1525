"""What was found of an output's numbers is known to runs that go on, or find it up to date."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mergeengine
from mergeengine import CheckpointError, RunResult
from mergeengine.lazy.partition import CHUNK
from mergeengine.output.journal import Journal, read_claims, read_key
from mergeengine.output.writer import ShardWriter
from tests.workflow.test_numeric_findings import close, models, plan, spoil

EARLY, LATE = (0, 5), (2900, 2)  # in the first and in the last of three chunks


class StopError(Exception):
    pass


def stopped(path: Path, after: int, **options: Any) -> None:
    """A run that dies when so many blocks were recorded."""
    record, recorded = ShardWriter.record, []

    def stopping(self: ShardWriter, *args: Any) -> None:
        if len(recorded) == after:
            raise StopError
        record(self, *args)
        recorded.append(args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWriter, "record", stopping)
        with pytest.raises(StopError):
            mergeengine.run(path, workers=1, **options)


def texts(result: RunResult) -> list[str]:
    return [text for text in result.warnings if "infinite" in text or "rounding" in text]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kept(result: RunResult) -> int:
    count: int = result.report["bytes"]["kept_from_earlier_run"]
    return count


@pytest.mark.parametrize("on_nonfinite", ["allow", "keep_target"])
@pytest.mark.parametrize("places", [[EARLY], [EARLY, LATE]], ids=str)
def test_a_resumed_run_tells_what_the_whole_run_does(
    on_nonfinite: str,
    places: Sequence[tuple[int, int]],
    way: str,
    tmp_path: Path,
) -> None:
    models(tmp_path)
    spoil(tmp_path, "ft", *places)
    path = plan(tmp_path, on_nonfinite=on_nonfinite, scaling=0.7)
    whole = mergeengine.run(path)
    assert len(texts(whole)) == 1
    expected = files(whole.output)
    for file in whole.output.iterdir():
        file.unlink()
    stopped(path, 2, force=True)
    resumed = mergeengine.run(path, block_chunks=2)
    assert kept(resumed) > 0
    assert texts(resumed) == texts(whole)
    assert resumed.report["precision"] == whole.report["precision"]
    assert files(resumed.output) == expected


def test_an_output_that_is_up_to_date_tells_it_again(tmp_path: Path) -> None:
    close(tmp_path, 0.002)
    spoil(tmp_path, "ft", EARLY)
    path = plan(tmp_path, on_nonfinite="allow", scaling=0.7)
    made = mergeengine.run(path)
    assert len(texts(made)) == 2
    again = mergeengine.run(path)
    assert not again.made
    assert texts(again) == texts(made)
    assert again.report["precision"] == made.report["precision"]
    document = json.loads((made.output / "mergeengine.json").read_text())
    assert document["findings"]["not_finite"] == {"w": 1}
    assert document["findings"]["warnings"] == texts(made)
    assert document["findings"]["precision"] == made.report["precision"]


def test_so_does_each_output_of_a_sweep(tmp_path: Path) -> None:
    models(tmp_path)
    spoil(tmp_path, "ft", EARLY)
    path = plan(tmp_path, on_nonfinite="keep_target")
    first, _ = mergeengine.sweep(path, ["scaling=0.5"])
    both, _ = mergeengine.sweep(path, ["scaling=0.5,0"])
    assert [result.made for result in both] == [False, True]
    assert [texts(result) for result in both] == [texts(first[0]), []]
    assert len(texts(first[0])) == 1


def test_a_chunk_that_is_made_again_for_another_output_counts_once(
    way: str,
    tmp_path: Path,
) -> None:
    """Of two outputs that are made together one has all but its last chunk already."""
    models(tmp_path)
    spoil(tmp_path, "ft", EARLY, (0, 6))
    path = plan(tmp_path, on_nonfinite="allow")
    stopped(path, 2, overrides=["scaling=0.5"], output=tmp_path / "out-scaling-0.5")
    results, report = mergeengine.sweep(path, ["scaling=0.5,1.0"])
    assert report["bytes"]["kept_from_earlier_run"] > 0
    for result in results:
        (text,) = texts(result)
        assert text.startswith("w: 2 computed values are infinite or NaN, the first at [0, 5]")


@pytest.mark.parametrize("on_nonfinite", ["allow", "keep_target"])
def test_a_run_that_was_refused_goes_on(
    on_nonfinite: str,
    way: str,
    tmp_path: Path,
) -> None:
    """What is finite is the same whatever is done about what is not."""
    models(tmp_path)
    spoil(tmp_path, "ft", LATE)
    with pytest.raises(CheckpointError, match=r"at \[2900, 2\]"):
        mergeengine.run(plan(tmp_path), workers=1)
    with pytest.raises(CheckpointError, match=r"at \[2900, 2\]"):
        mergeengine.run(plan(tmp_path), workers=1)
    path = plan(tmp_path, on_nonfinite=on_nonfinite)
    result = mergeengine.run(path)
    assert kept(result) >= 2 * 2 * CHUNK
    fresh = mergeengine.run(path, output=tmp_path / "fresh")
    assert kept(fresh) == 0
    assert files(result.output) == files(fresh.output)
    assert len(texts(result)) == 1


def test_a_run_that_was_refused_goes_on_when_the_input_is_mended(tmp_path: Path) -> None:
    """An input that was changed is another input: all is made again, and rightly."""
    held = models(tmp_path)
    spoil(tmp_path, "ft", LATE)
    with pytest.raises(CheckpointError):
        mergeengine.run(plan(tmp_path), workers=1)
    spoil(tmp_path, "ft", LATE, value=float(held["ft"][LATE]))
    result = mergeengine.run(plan(tmp_path))
    assert kept(result) == 0
    expected = (held["target"].float() + (held["ft"].float() - held["base"].float())).bfloat16()
    assert torch.equal(load_file(result.output / "model.safetensors")["w"], expected)


MODES = ("error", "allow", "keep_target")


@pytest.mark.parametrize("now", MODES)
@pytest.mark.parametrize("before", ["allow", "keep_target"])
def test_what_another_mode_made_of_such_values_is_not_taken_over(
    before: str,
    now: str,
    way: str,
    tmp_path: Path,
) -> None:
    models(tmp_path)
    spoil(tmp_path, "ft", EARLY)
    stopped(plan(tmp_path, on_nonfinite=before), 2)
    path = plan(tmp_path, on_nonfinite=now)
    if now == "error":
        with pytest.raises(CheckpointError, match=r"at \[0, 5\]"):
            mergeengine.run(path)
        assert not (tmp_path / "out").exists()
        return
    result = mergeengine.run(path)
    assert kept(result) > 0
    fresh = mergeengine.run(path, output=tmp_path / "fresh")
    assert files(result.output) == files(fresh.output)
    value = load_file(result.output / "model.safetensors")["w"][EARLY]
    assert bool(value.isnan()) == (now == "allow")


def test_modes_may_change_again_and_again(tmp_path: Path) -> None:
    """Each run gets a chunk further; what counts is what was done last to a chunk."""
    models(tmp_path)
    spoil(tmp_path, "ft", EARLY, (1400, 3), LATE)
    for after, mode in ((1, "allow"), (1, "keep_target"), (2, "allow"), (1, "keep_target")):
        stopped(plan(tmp_path, on_nonfinite=mode), after)
    path = plan(tmp_path, on_nonfinite="keep_target")
    result = mergeengine.run(path)
    assert files(result.output) == files(mergeengine.run(path, output=tmp_path / "fresh").output)


@pytest.mark.parametrize(
    "note",
    [
        "",
        "{",
        "[1]",
        "{}",
        '{"sums":["x",1]}',
        '{"sums":[0,1],"not_finite":{"count":1},"by":"allow"}',
        "[" * 5000,
    ],
    ids=range(7),
)
def test_a_chunk_whose_note_says_nothing_is_made_again(note: str, tmp_path: Path) -> None:
    models(tmp_path)
    spoil(tmp_path, "ft", EARLY)
    path = plan(tmp_path, on_nonfinite="allow")
    whole = mergeengine.run(path)
    expected = files(whole.output)
    stopped(path, 2, force=True)
    journal = tmp_path / ".out.partial" / "journal"
    claims, key = list(read_claims(journal)), read_key(journal)
    assert key is not None
    journal.unlink()
    writing = Journal(journal, key)
    for claim in claims:
        writing.record(claim.tensor, claim.chunk, [claim.digest], [note])
    writing.close()
    resumed = mergeengine.run(path, force=True)
    assert kept(resumed) == 0
    assert files(resumed.output) == expected
    assert texts(resumed) == texts(whole)


def test_a_source_with_spaces_is_told_of_by_its_name(tmp_path: Path) -> None:
    models(tmp_path)
    spoil(tmp_path, "ft", EARLY)
    (tmp_path / "ft").rename(tmp_path / "my fine tüne")
    path = plan(tmp_path, on_nonfinite="allow", source_ft="./my fine tüne")
    stopped(path, 2)
    (text,) = texts(mergeengine.run(path))
    assert "source_ft (./my fine tüne) has such values there" in text


def test_resumed_figures_are_those_of_all_chunks(tmp_path: Path) -> None:
    close(tmp_path, 0.01)
    path = plan(tmp_path, scaling=0.7)
    whole = mergeengine.run(path).report["precision"]
    stopped(path, 2, force=True)
    result = mergeengine.run(path, force=True)
    assert kept(result) > 0
    assert result.report["precision"] == whole
