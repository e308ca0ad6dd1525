"""What a valid plan becomes."""

import math
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mergeengine.errors import PlanError
from mergeengine.lazy.dtypes import BFLOAT16, FLOAT32
from mergeengine.plan import load_plan, parse_plan
from mergeengine.values.anatomy import lone
from mergeengine.values.references import ModelReference

FULL = """\
version: 1
name: llama-3.1-8b-recycled
target: meta-llama/Llama-3.1-8B@0e9e39f        # the model that receives the delta
source_base: meta-llama/Meta-Llama-3-8B
source_ft: ./checkpoints/llama-3-8b-instruct
scaling: 0.8
masks:
  - {layers: "0-3", scale: 0.0}
  - {match: "*.mlp.*", scale: 0.5}
output:
  path: out/recycled
  dtype: bfloat16
  shard_size: 2GB
numerics:
  compute_dtype: float64
on_missing: keep_target
on_extra: copy
on_mismatch: keep_target
on_nonfinite: allow
"""
SHORT = "version: 1\nbase: org/old\nsource_ft: ./tuned\n"


def test_every_key_arrives(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(FULL)
    plan = load_plan(file)
    assert plan.version == 1
    assert plan.name == "llama-3.1-8b-recycled"
    assert plan.file == file
    assert plan.text == FULL
    assert plan.target == ModelReference(
        "meta-llama/Llama-3.1-8B@0e9e39f", repo="meta-llama/Llama-3.1-8B", revision="0e9e39f"
    )
    (source,) = plan.sources
    assert source.name == "source1"
    assert source.source_base.repo == "meta-llama/Meta-Llama-3-8B"
    assert source.source_ft.path == tmp_path.resolve() / "checkpoints/llama-3-8b-instruct"
    assert source.scaling.at(lone("x")).value == 0.8
    assert str(source.scaling.at(lone("x")).position) == f"{file}:6:10"
    assert source.masks.entries == ()
    assert [plan.masks.at(lone(f"layers.{n}.mlp.w")).value for n in (0, 3, 4)] == [0.0, 0.0, 0.5]
    assert str(plan.masks.at(lone("layers.4.mlp.w")).position) == f"{file}:9:5"
    assert plan.output.path == tmp_path.resolve() / "out/recycled"
    assert plan.output.dtype.at(lone("any")) == BFLOAT16
    assert plan.output.shard_size == 2_000_000_000
    assert plan.numerics.compute_dtype == "float64"
    assert (plan.on_missing, plan.on_extra, plan.on_mismatch) == (
        "keep_target",
        "copy",
        "keep_target",
    )
    assert plan.on_nonfinite == "allow"


def test_defaults() -> None:
    plan = parse_plan(SHORT, "plans/recycle.yaml")
    assert plan.name == "recycle"
    assert plan.target == plan.sources[0].source_base
    assert plan.target.repo == "org/old"
    assert plan.sources[0].source_ft.path == Path.cwd().resolve() / "plans/tuned"
    assert plan.sources[0].scaling.at(lone("x")).value == 1.0
    assert plan.masks.entries == ()
    assert plan.output.path is None
    assert plan.output.dtype.at(lone("x")) is None
    assert plan.output.shard_size == 5_000_000_000
    assert plan.output.tokenizer == "source_ft"
    assert plan.output.config == "target"
    assert plan.output.generation_config == "source_ft"
    assert plan.numerics.compute_dtype == "auto"
    assert (plan.on_missing, plan.on_extra, plan.on_mismatch) == ("error", "error", "error")
    assert plan.on_nonfinite == "error"


def test_several_sources_inherit_and_override_the_base() -> None:
    plan = parse_plan(
        "version: 1\n"
        "target: org/new\n"
        "source_base: org/old\n"
        "masks: [{match: '*embed*', scale: 0}]\n"
        "sources:\n"
        "  - {source_ft: org/a, scaling: 0.5, masks: [{layers: 3, scale: 0.25}]}\n"
        "  - {name: code, source_ft: org/b, source_base: org/other}\n",
        "p.yaml",
    )
    first, second = plan.sources
    assert (first.name, second.name) == ("source1", "code")
    assert (first.source_base.repo, second.source_base.repo) == ("org/old", "org/other")
    assert (first.scaling.at(lone("x")).value, second.scaling.at(lone("x")).value) == (0.5, 1.0)
    assert first.masks.at(lone("h.3.w")).value == 0.25
    assert second.masks.at(lone("h.3.w")).value == 1.0
    assert plan.masks.at(lone("embed")).value == 0.0
    assert str(first.position) == "p.yaml:6:5"


def test_base_serves_several_sources() -> None:
    plan = parse_plan(
        "version: 1\nbase: org/old\nsources: [{source_ft: org/a}, {source_ft: org/b}]", "p.yaml"
    )
    assert plan.target.repo == "org/old"
    assert [source.source_base.repo for source in plan.sources] == ["org/old", "org/old"]


def test_dtype_rules() -> None:
    rules = parse_plan(
        SHORT
        + "output:\n"
        + "  dtype:\n"
        + '    - {match: ["*router*", "*gate.weight"], dtype: float32}\n'
        + '    - {layers: "0-", dtype: bfloat16}\n',
        "p.yaml",
    ).output.dtype
    assert rules.at(lone("layers.0.router.w")) == FLOAT32
    assert rules.at(lone("layers.0.w")) == BFLOAT16
    assert rules.at(lone("lm_head")) is None
    decided = rules.rule_at(lone("layers.0.router.w"))
    assert decided is not None
    assert str(decided.position) == "p.yaml:6:7"
    assert decided.text == 'match: ["*router*", "*gate.weight"], dtype: float32'
    assert rules.unused([lone(name) for name in ["layers.0.w"]]) == [rules.rules[0]]


def test_files_may_come_from_another_model() -> None:
    output = parse_plan(
        SHORT + "output: {tokenizer: target, config: ./mine, generation_config: org/chat@v1}",
        "p.yaml",
    ).output
    assert output.tokenizer == "target"
    assert isinstance(output.config, ModelReference)
    assert output.config.is_local
    assert isinstance(output.generation_config, ModelReference)
    assert output.generation_config.revision == "v1"
    assert str(output.config.position) == "p.yaml:4:37"


def test_document_is_the_plan_as_written() -> None:
    plan = parse_plan(
        "# note\nversion: 1\nbase: &b org/old\nsource_ft: org/ft\noutput: {path: o}\n", "p.yaml"
    )
    assert plan.document == {
        "version": 1,
        "base": "org/old",
        "source_ft": "org/ft",
        "output": {"path": "o"},
    }


def test_identity_leaves_out_where_the_output_lies() -> None:
    plan = parse_plan(FULL, "p.yaml")
    elsewhere = parse_plan(FULL.replace("out/recycled", "/mnt/other"), "p.yaml")
    assert plan.identity_document == elsewhere.identity_document
    assert plan.identity_document["output"] == {"dtype": "bfloat16", "shard_size": "2GB"}
    assert plan.document["output"]["path"] == "out/recycled"
    without = parse_plan(SHORT, "p.yaml")
    only_path = parse_plan(SHORT + "output: {path: x}", "p.yaml")
    assert only_path.identity_document == without.identity_document
    assert parse_plan(FULL, "p.yaml", ["scaling=1"]).identity_document != plan.identity_document


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-.5", -0.5),
        ("+1.", 1.0),
        ("1", 1.0),
        ("007", 7.0),
        ("0x10", 16.0),
        ("0o10", 8.0),
        ("1.5e+2", 150.0),
        ("-0", 0.0),
    ],
)
def test_numbers(written: str, value: float) -> None:
    plan = parse_plan(f"{SHORT}scaling: {written}\n", "p.yaml")
    assert plan.sources[0].scaling.at(lone("x")).value == value


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(5e-324)
@example(-0.0)
def test_every_number_reads_back_exactly(value: float) -> None:
    for written in (repr(value), f"{value:.17e}", f"{value:.17E}"):
        read = (
            parse_plan(f"{SHORT}scaling: {written}\n", "p.yaml")
            .sources[0]
            .scaling.at(lone("x"))
            .value
        )
        assert read == value
        assert math.copysign(1, read) == math.copysign(1, value)


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "y", "2024-01-01", "1_000", "1:30"])
def test_words_that_older_yaml_reads_as_something_else_are_texts(word: str) -> None:
    assert parse_plan(f"{SHORT}name: {word}\n", "p.yaml").name == word


def test_an_alias_stands_for_its_value() -> None:
    plan = parse_plan("version: 1\nbase: &m org/old\nsource_ft: *m\n", "p.yaml")
    assert plan.sources[0].source_ft.repo == "org/old"


def test_byte_order_mark_and_dos_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + SHORT.replace("\n", "\r\n").encode() + b"scalin: 1\r\n")
    with pytest.raises(PlanError) as raised:
        load_plan(file)
    assert str(raised.value) == (
        f"{file}:4:1: unknown key `scalin`; did you mean `scaling`?\n    scalin: 1\n    ^"
    )


def test_the_file_is_named_as_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("version: 1\n")
    relative = os.path.relpath(tmp_path / "p.yaml")
    with pytest.raises(PlanError) as raised:
        load_plan(relative)
    assert str(raised.value).startswith(f"{relative}:1:1: ")


def test_paths_start_at_the_plans_file(tmp_path: Path) -> None:
    folder = tmp_path / "plans"
    folder.mkdir()
    (folder / "p.yaml").write_text(SHORT.replace("./tuned", "../tuned"))
    plan = load_plan(os.path.relpath(folder / "p.yaml"), ["output.path=out"])
    assert plan.sources[0].source_ft.path == tmp_path.resolve() / "tuned"
    assert plan.output.path == folder.resolve() / "out"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "recycle.yaml").write_text(SHORT)
    with pytest.raises(PlanError) as missing:
        load_plan(tmp_path / "recycle.yml")
    assert str(missing.value) == (
        f"{tmp_path}/recycle.yml: there is no such file; did you mean `{tmp_path}/recycle.yaml`?"
    )
    with pytest.raises(PlanError) as folder:
        load_plan(tmp_path)
    assert str(folder.value) == f"{tmp_path}: this is a folder; give the plan's file"
    with pytest.raises(PlanError) as nowhere:
        load_plan(tmp_path / "no" / "p.yaml")
    assert str(nowhere.value) == f"{tmp_path}/no/p.yaml: there is no such file"
    (tmp_path / "big.yaml").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(PlanError) as big:
        load_plan(tmp_path / "big.yaml")
    assert str(big.value) == f"{tmp_path}/big.yaml: the file is larger than 1 MiB, which no plan is"
    with pytest.raises(PlanError, match="cannot be read"):
        load_plan("a\0b")
