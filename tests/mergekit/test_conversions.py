"""What configurations become: ``conversions/NAME.yml``, and ``NAME.txt``, what `convert` says."""

from pathlib import Path

import pytest

from mergeengine.cli import call
from mergeengine.workflow.reading import is_chain, load_chain, load_plan, parse_chain, parse_plan

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in (HERE / "conversions").glob("*.yml"))
ALL = [*sorted((HERE / "conversions").glob("*.yml")), *sorted((HERE / "published").glob("*.yml"))]


@pytest.mark.parametrize("name", NAMES)
def test_conversion(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(HERE / "conversions")
    assert call(["convert", f"{name}.yml"]) == 0
    out, err = capsys.readouterr()
    assert out + err == Path(f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_it_is_the_same_plan(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(path.parent)
    assert call(["convert", path.name]) == 0
    text = capsys.readouterr().out
    if is_chain(path.name):
        assert parse_chain(text, path.name).document == load_chain(path.name).document
        return
    found, expected = parse_plan(text, path.name), load_plan(path.name)
    assert found.document == expected.document
    assert found.sources == expected.sources
    assert found.parameters == expected.parameters
    assert found.output == expected.output


def test_every_text_has_its_configuration() -> None:
    assert sorted(path.stem for path in (HERE / "conversions").glob("*.txt")) == NAMES
