"""A sweep makes the bytes that single runs make, of one reading of the inputs."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import mergeengine
from mergeengine.compiler.schedule import MOST_RESULTS
from mergeengine.errors import OutputError, PlanError, ResourceError
from mergeengine.execution import native
from mergeengine.execution.reader import Reader
from mergeengine.lazy.partition import CHUNK
from mergeengine.output.writer import ShardWriter
from mergeengine.workflow.sweep import sweep

PLAN = """\
version: 1
target: ./target
source_base: ./base
source_ft: ./ft
scaling: 0.7
masks: [{match: "gone*", scale: 0}, {match: "half*", scale: 0.5}]
output: {path: ./out}
"""
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}


@pytest.fixture(params=["loop", "torch"])
def plan(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "torch":
        monkeypatch.setenv(native.SWITCH, "0")
    for seed, name in enumerate(("target", "base", "ft")):
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        (tmp_path / name).mkdir()
        tensors = {
            "large": random(CHUNK // 64 + 3, 128).bfloat16(),
            "half.narrow": random(70, 30).half(),
            "wide": random(33, 9),
            "gone": random(40).bfloat16(),
            "empty": torch.zeros(0, 4),
            "count": torch.tensor([seed]),
        }
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path / "plan.yaml"


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def manifest(folder: Path) -> Any:
    found = json.loads((folder / "mergeengine.json").read_text())
    return {key: found[key] for key in ("identity", "tensors", "plan")}


def single(plan: Path, value: str) -> Path:
    place = plan.parent / f"single-{value}"
    return mergeengine.run(plan, overrides=[f"scaling={value}"], output=place).output


def test_each_output_is_that_of_a_single_run(plan: Path) -> None:
    values = ["0", "0.3", "1", "-2.5"]
    results, report = sweep(plan, [f"scaling={','.join(values)}"])
    assert [r.output.name for r in results] == [f"out-scaling-{value}" for value in values]
    for value, result in zip(values, results, strict=True):
        alone = single(plan, value)
        assert weights(result.output) == weights(alone)
        assert manifest(result.output) == manifest(alone)
        assert mergeengine.verify(result.output) == []
    assert report["bytes"]["written"] == 4 * mergeengine.run(plan).report["bytes"]["written"]


def test_the_inputs_are_read_once(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the reports say, and by the calls that read."""
    alone = mergeengine.run(plan, output=plan.parent / "alone").report["bytes"]["read"]
    reads: list[int] = []
    into, loop = Reader.read_into, native.Library.run

    def read_into(self: Reader, file: Any, offset: int, buffer: memoryview) -> None:
        reads.append(len(buffer))
        into(self, file, offset, buffer)

    def run(self: native.Library, program: Any, *others: Any) -> None:
        elements = others[5]
        reads.append(
            sum(program.sources[k].itemsize for k in range(program.source_count)) * elements
        )
        loop(self, program, *others)

    monkeypatch.setattr(Reader, "read_into", read_into)
    monkeypatch.setattr(native.Library, "run", run)
    _, report = sweep(plan, ["scaling=0.1,0.2,0.3"])
    assert report["bytes"]["read"] == alone
    again = 0.05 if os.environ.get(native.SWITCH) == "0" else 0  # torch reads samples once more
    assert alone <= sum(reads) <= alone * (1 + again)


def test_what_is_up_to_date_is_left_alone(plan: Path) -> None:
    sweep(plan, ["scaling=0.3,0.5"])
    before = (plan.parent / "out-scaling-0.3/model.safetensors").stat()
    results, report = sweep(plan, ["scaling=0.3,0.9"])
    assert [result.made for result in results] == [False, True]
    assert os.path.samestat(before, (plan.parent / "out-scaling-0.3/model.safetensors").stat())
    again, report = sweep(plan, ["scaling=0.3,0.9"])
    assert not any(result.made for result in again)
    assert report["bytes"] == dict.fromkeys(
        ("read", "transferred", "written", "kept_from_earlier_run"), 0
    )


def test_an_output_that_fails_loses_nothing_of_the_others(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of three cannot be recorded in the middle: the next run goes on from there."""
    record, calls = ShardWriter.record, []

    def failing(self: ShardWriter, tensor: int, *rest: Any) -> None:
        if "0.5" in str(self._workspace.files):
            calls.append(tensor)
            if len(calls) == 3:
                raise self.failed(tensor, OSError(28, "No space left on device"))
        record(self, tensor, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "record", failing)
        with pytest.raises(OutputError, match=r"scaling-0\.5"):
            sweep(plan, ["scaling=0.3,0.5,0.9"], workers=1)
    assert not list(plan.parent.glob("out-*"))
    results, report = sweep(plan, ["scaling=0.3,0.5,0.9"])
    assert report["bytes"]["kept_from_earlier_run"] > 0
    for value, result in zip(("0.3", "0.5", "0.9"), results, strict=True):
        assert weights(result.output) == weights(single(plan, value))


def test_a_half_made_output_goes_on_among_others(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a single run left is made together with one of which there is nothing."""
    record, calls = ShardWriter.record, []

    def stopping(self: ShardWriter, tensor: int, *rest: Any) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(tensor)
        record(self, tensor, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "record", stopping)
        with pytest.raises(KeyboardInterrupt):
            mergeengine.run(
                plan, overrides=["scaling=0.5"], output=plan.parent / "out-scaling-0.5", workers=1
            )
    results, report = sweep(plan, ["scaling=0.3,0.5"])
    assert report["bytes"]["kept_from_earlier_run"] > 0
    for value, result in zip(("0.3", "0.5"), results, strict=True):
        assert weights(result.output) == weights(single(plan, value))


def test_other_dtypes_are_made_in_the_same_pass(plan: Path) -> None:
    results, _ = sweep(plan, ["output.dtype=float32,bfloat16", "scaling=0.5,1"])
    assert [result.output.name for result in results] == [
        f"out-dtype-{dtype}-scaling-{value}"
        for dtype in ("float32", "bfloat16")
        for value in ("0.5", "1")
    ]
    for result in results:
        dtype, value = result.output.name.split("-")[2::2]
        alone = mergeengine.run(
            plan,
            overrides=[f"output.dtype={dtype}", f"scaling={value}"],
            output=plan.parent / "alone",
            force=True,
        )
        assert weights(result.output) == weights(alone.output)


def test_more_outputs_than_one_program_makes(plan: Path) -> None:
    values = [str(n) for n in range(MOST_RESULTS + 2)]
    results, report = sweep(plan, [f"scaling={','.join(values)}"])
    assert report["bytes"]["read"] == 2 * sweep(plan, ["scaling=100,200"])[1]["bytes"]["read"]
    for value in (values[0], values[3], values[-1]):
        assert weights(results[int(value)].output) == weights(single(plan, value))


def test_infinities_are_told_of_the_output_that_has_them(plan: Path) -> None:
    results, _ = sweep(plan, ["scaling=1,1e6,3"], overrides=["on_nonfinite=allow"])
    told = [any("infinite or NaN" in warning for warning in r.warnings) for r in results]
    assert told == [False, True, False], "float16 ends at 65504"


def test_an_output_of_somebody_else_stops_all(plan: Path) -> None:
    (plan.parent / "out-scaling-0.5").mkdir()
    (plan.parent / "out-scaling-0.5/thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"out-scaling-0\.5"):
        sweep(plan, ["scaling=0.3,0.5"])
    assert not (plan.parent / "out-scaling-0.3").exists()


def test_what_does_not_fit_together_is_refused_before(plan: Path) -> None:
    with pytest.raises(ResourceError, match="raise --memory"):
        sweep(plan, [f"scaling={','.join(map(str, range(16)))}"], memory="60MiB")
    assert not list(plan.parent.glob("*out*"))


def test_versions_with_other_tensors_are_refused(plan: Path) -> None:
    (plan.parent / "other").mkdir()
    save_file({"x": torch.zeros(3)}, plan.parent / "other/model.safetensors")
    (plan.parent / "other/config.json").write_text(json.dumps(CONFIG))
    others = ["on_missing=keep_target", "on_extra=ignore", "masks=[]"]
    with pytest.raises(PlanError, match="--sweep: out-target-other would have other tensors"):
        sweep(plan, ["target=./target,./other"], overrides=others)


def test_memory_is_as_projected(plan: Path) -> None:
    _, report = sweep(plan, [f"scaling={','.join(map(str, range(MOST_RESULTS)))}"])
    assert 0 < report["memory"]["measured_bytes"] <= report["memory"]["projected_bytes"]
