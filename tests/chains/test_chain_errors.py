"""Wrong chains and the exact text each is answered with: ``golden/NAME.yaml`` and ``.txt``."""

from pathlib import Path

import pytest

from mergeengine.chain.load import load_chain
from mergeengine.errors import PlanError

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(file.stem for file in GOLDEN.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_error_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)
    with pytest.raises(PlanError) as raised:
        load_chain(f"{name}.yaml")
    assert f"{raised.value}\n" == Path(f"{name}.txt").read_text(encoding="utf-8")


def test_every_text_has_its_chain() -> None:
    assert sorted(file.stem for file in GOLDEN.glob("*.txt")) == NAMES
    assert len(NAMES) > 20
