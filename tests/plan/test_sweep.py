"""``--sweep key=value,value``."""

import pytest

from mergeengine.errors import PlanError
from mergeengine.plan.sweep import variants


def test_without_sweeps_there_is_one_variant_without_a_name() -> None:
    (only,) = variants([])
    assert (only.overrides, only.name) == ((), "")


def test_values_and_names() -> None:
    found = variants(["scaling=0.3, 0.5,1e-3"])
    assert [each.overrides for each in found] == [
        ("scaling=0.3",), ("scaling=0.5",), ("scaling=1e-3",),
    ]  # fmt: skip
    assert [each.name for each in found] == ["scaling-0.3", "scaling-0.5", "scaling-1e-3"]


def test_several_sweeps_are_every_combination() -> None:
    found = variants(["sources.1.scaling=1,2", "output.dtype=bfloat16,float32"])
    assert [each.name for each in found] == [
        "sources-1-scaling-1-dtype-bfloat16",
        "sources-1-scaling-1-dtype-float32",
        "sources-1-scaling-2-dtype-bfloat16",
        "sources-1-scaling-2-dtype-float32",
    ]


def test_commas_inside_a_value() -> None:
    found = variants(['scaling=[0.2, 1.0],{a: 1, b: 2},"x,y"'])
    assert [each.overrides[0] for each in found] == [
        "scaling=[0.2, 1.0]", "scaling={a: 1, b: 2}", 'scaling="x,y"',
    ]  # fmt: skip
    assert found[0].name == "scaling-0.2_1.0"


@pytest.mark.parametrize(
    ("sweeps", "said"),
    [
        (["scaling"], "expected key=value,value"),
        (["scaling="], "expected key=value,value"),
        (["scaling=1,,2"], "expected key=value,value"),
        (["=1,2"], "expected key=value,value"),
        (["scaling=1,2", "scaling=3"], "`scaling` is given twice"),
        (["scaling=1,1"], "would both be called scaling-1"),
        (["scaling=a/b,a_b"], "would both be called scaling-a_b"),
        (["output.path=a,b"], "cannot be swept"),
        (["name=a,b"], "cannot be swept"),
        ([f"scaling={','.join(map(str, range(300)))}"], "300 outputs; 256 at most"),
    ],
)
def test_what_is_no_sweep(sweeps: list[str], said: str) -> None:
    with pytest.raises(PlanError, match="--sweep") as caught:
        variants(sweeps)
    assert said in str(caught.value)
