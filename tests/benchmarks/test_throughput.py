"""The benchmark runs, and what it writes can be relied on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["floor", "mergeengine", "naive"]
PAGE = """# Before

<!-- throughput: begin (written by `python -m benchmarks.throughput --publish`) -->
an old table
<!-- throughput: end -->

After.
"""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="memory and caches are those of Linux"
)


def throughput(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.throughput", *arguments]
    environment = {**os.environ, "MERGEKIT": str(ROOT / "no-such-program")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str, str]:
    """The JSON, the printed tables, and the page they were published on."""
    folder = tmp_path_factory.mktemp("throughput")
    page = folder / "page.md"
    page.write_text(PAGE)
    # The cold cache is every process's: a test leaves it alone.
    options = ["--size", "4MB", "--rounds", "2", "--cache", "warm", "--folder", str(folder)]
    done = throughput(*options, "--publish", str(page))
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "throughput.json").read_text()), done.stdout, page.read_text()


def test_every_contestant_is_measured_in_every_round(measured: tuple[Any, str, str]) -> None:
    document, _, _ = measured
    chosen = document["floor"]["warm"]["chosen"]
    counted = [run for run in document["runs"] if run["way"] in (None, chosen)]
    runs = [(run["round"], run["contestant"], run["cache"]) for run in counted]
    assert runs == [
        *((0, name, "warm") for name in NAMES),
        *((1, name, "warm") for name in reversed(NAMES)),
    ]
    for run in document["runs"]:
        assert 0 < run["inside"] < run["wall"]
        assert run["cpu"] > 0
        assert 0 < run["peak_anonymous"] < run["peak_resident"]
        assert run["cpu_of_others"] >= 0


def test_the_floor_is_the_best_of_those_in_the_rounds(measured: tuple[Any, str, str]) -> None:
    document, _, _ = measured
    seconds: dict[str, list[float]] = {}
    for run in document["runs"]:
        if run["way"] is not None:
            seconds.setdefault(json.dumps(run["way"]), []).append(run["inside"])
    assert len(seconds) == 3
    best = min(seconds, key=lambda way: sum(seconds[way]))
    assert document["floor"]["warm"]["chosen"] == json.loads(best)


def test_sizes_are_those_of_the_inputs(measured: tuple[Any, str, str]) -> None:
    inputs = measured[0]["inputs"]
    assert 3e6 < inputs["bytes_written"] < 5e6
    assert inputs["bytes_read"] == 3 * inputs["bytes_written"]
    assert inputs["files"] > 1


def test_ratios_are_to_the_same_round(measured: tuple[Any, str, str]) -> None:
    document, _, _ = measured
    ways = (None, document["floor"]["warm"]["chosen"])
    runs = [run for run in document["runs"] if run["way"] in ways]
    walls = {(run["contestant"], run["round"]): run["wall"] for run in runs}
    ratios = sorted(walls["naive", n] / walls["floor", n] for n in (0, 1))
    spread = document["summary"]["warm"]["naive"]["wall_over_floor"]
    assert [spread["least"], spread["most"]] == pytest.approx(ratios)
    assert spread["median"] == pytest.approx(sum(ratios) / 2)


def test_mergeengine_makes_the_bits_of_the_naive_merge(measured: tuple[Any, str, str]) -> None:
    values = measured[0]["values"]
    assert sorted(values) == ["mergeengine", "naive"]
    assert values["mergeengine"] == values["naive"]


def test_an_absent_mergekit_is_left_out_with_a_word(measured: tuple[Any, str, str]) -> None:
    document, table, _ = measured
    assert sorted(document["skipped"]) == ["mergekit", "mergekit-float32"]
    assert "Not measured: mergekit (MERGEKIT is " in table


def test_the_tables_go_between_the_markers(measured: tuple[Any, str, str]) -> None:
    _, table, page = measured
    before, _, after = PAGE.partition("an old table")
    assert page == f"{before}\n{table}\n{after.lstrip()}"
    assert "**mergeengine**" in table


def test_an_unknown_contestant_is_refused() -> None:
    done = throughput("mergengine")
    assert done.returncode == 2
    assert "no contestant mergengine" in done.stderr
