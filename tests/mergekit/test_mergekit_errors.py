"""Wrong configurations and the exact text each is answered with: ``errors/NAME.yml``, ``.txt``."""

from pathlib import Path

import pytest

from mergeengine.compiler.merging import method_of
from mergeengine.errors import PlanError
from mergeengine.workflow.reading import is_chain, load_chain, load_plan

ERRORS = Path(__file__).parent / "errors"
NAMES = sorted(file.stem for file in ERRORS.glob("*.yml"))


def read(file: str) -> None:
    if is_chain(file):
        load_chain(file)
    else:
        method_of(load_plan(file))


@pytest.mark.parametrize("name", NAMES)
def test_error_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ERRORS)
    with pytest.raises(PlanError) as raised:
        read(f"{name}.yml")
    assert f"{raised.value}\n" == Path(f"{name}.txt").read_text(encoding="utf-8")


def test_every_text_has_its_configuration() -> None:
    assert sorted(file.stem for file in ERRORS.glob("*.txt")) == NAMES
