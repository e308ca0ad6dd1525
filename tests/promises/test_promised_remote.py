"""Remote inputs keep the promises of local ones: bounded memory, and a run that goes on."""

from pathlib import Path
from typing import Any

import children
import pytest
from children import Child
from lineage import many, sparse_lineage
from remote_stand_in import StandInServer

from mergeengine.compiler.transfer import SMALLEST
from mergeengine.errors import ResourceError
from mergeengine.plan.load import load_plan
from mergeengine.units import parse_size
from mergeengine.workflow.prepare import prepare
from mergeengine.workflow.settings import Settings

MiB = 1 << 20


class Weights(dict[str, bytes]):
    """The files below a folder, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __contains__(self, name: object) -> bool:
        return (self.folder / str(name)).is_file()

    def __getitem__(self, name: str) -> bytes:
        if name not in self.keys():
            self[name] = (self.folder / name).read_bytes()
        return super().__getitem__(name)


@pytest.fixture
def remote_lineage(web: StandInServer, folder: Path) -> Any:
    """``make(shapes, dtype, sources)``: a plan whose deltas are of models on a server."""

    def make(shapes: Any, dtype: str = "BF16", sources: int = 1) -> Path:
        plan = sparse_lineage(folder, shapes, dtype, sources)
        web.files = Weights(folder)
        text = plan.read_text()
        for role in ("base", "ft"):
            text = text.replace(f"./{role}", f"{web.url}/{role}")
        assert text.count(web.url) == 2 * sources
        plan.write_text(text)
        return plan

    return make


CASES: dict[str, tuple[Any, str, int, dict[str, Any]]] = {
    "as it comes": (many(12, 4096, 1024), "BF16", 1, {}),
    "little memory": (many(6, 4096, 1024), "BF16", 1, {"memory": 88 * MiB}),
    "float32": (many(4, 4096, 1024), "F32", 1, {"workers": 2}),
    "four sources": (many(4, 2000, 1024), "BF16", 4, {}),
    "small tensors": (many(800, 8, 16), "BF16", 1, {"memory": 96 * MiB}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_keeps_its_projection(case: str, remote_lineage: Any) -> None:
    shapes, dtype, sources, options = CASES[case]
    plan = remote_lineage(shapes, dtype, sources)
    (made, report), peak = Child(children.run_with, plan, options).go().watch()
    projected = report["memory"]["projected_bytes"]
    assert made
    assert peak <= projected <= options.get("memory", 1 << 60)


def test_the_budget_that_is_named_would_do(remote_lineage: Any) -> None:
    plan = remote_lineage(many(3, 1000, 400))
    with pytest.raises(ResourceError) as caught:
        prepare(load_plan(plan), Settings(memory=1))
    asked = str(caught.value).partition("at least ")[2].partition(" of memory")[0]
    prepared = prepare(load_plan(plan), Settings(memory=parse_size(asked)))
    assert prepared.schedule.transfers is not None
    assert prepared.schedule.transfers.span_bytes == SMALLEST


def test_a_killed_run_goes_on(remote_lineage: Any, web: StandInServer, folder: Path) -> None:
    plan = remote_lineage(many(10, 2048, 1024))
    child = Child(children.run_with, plan, {"workers": 2}, (children.slow_writes, 0.05)).go()
    journal = folder / ".out.partial" / "journal"
    while not journal.exists() or journal.stat().st_size < 200:
        assert child.process.is_alive()
    child.kill()
    assert not (folder / "out").exists()
    web.log.clear()
    made, report = children.call(children.run_with, plan, {})
    assert made
    assert report["bytes"]["kept_from_earlier_run"] > 0
    sent = web.sent("ft0/model.safetensors")
    assert sent < (folder / "ft0" / "model.safetensors").stat().st_size
