"""Any text is a plan or a `PlanError`: nothing else comes out, and soon."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeengine.errors import PlanError
from mergeengine.plan import Plan, load_plan, parse_plan

LAUGHS = "a: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"k{n}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(12)
)
KEYS = [
    "version", "name", "base", "target", "source_base", "source_ft", "scaling", "masks", "sources",
    "output", "dtype", "numerics", "on_missing", "layers", "match", "scale", "shard_size",
    "tokenizer", "scalling", "<<", "", "vars", "include",
]  # fmt: skip
WORDS = st.sampled_from(
    [
        "1",
        "0.5",
        "org/name",
        "./x",
        "bfloat16",
        "*",
        "0-3",
        "~",
        "true",
        ".nan",
        "5GB",
        "target",
        "${a}",
        "x${env:HOME}",
        "$",
    ]
)


def answer(text: str, overrides: tuple[str, ...] = ()) -> str:
    """The error's text, or an empty one for a plan."""
    told = ""
    try:
        assert isinstance(parse_plan(text, "p.yaml", overrides), Plan)
    except PlanError as error:
        told = str(error) or "an error without a text"
    assert told != "an error without a text"
    for jargon in ("pydantic", "Input should", "Value error", "yaml.org", "NoneType", "_type"):
        assert jargon not in told or jargon in text
    return told


@given(st.text(alphabet=st.characters(), max_size=80))
def test_any_text(text: str) -> None:
    answer(text)


@given(st.text(alphabet="ab:-[]{}&*!|>'\"%@`#?,~<= \n\t0.", max_size=60))
@settings(max_examples=300)
def test_any_yaml(text: str) -> None:
    answer(text)
    answer("version: 1\nbase: org/x\nsource_ft: org/y\n" + text)


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)


def flow(tree: object) -> str:
    """The tree in YAML's one-line form."""
    if isinstance(tree, dict):
        return "{" + ", ".join(f"'{key}': {flow(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, list):
        return f"[{', '.join(map(flow, tree))}]"
    if isinstance(tree, str):
        return "'" + tree.replace("'", "''") + "'"
    return "null" if tree is None else str(tree)


@given(st.dictionaries(st.sampled_from(KEYS), TREES, max_size=6))
@settings(max_examples=300)
def test_any_values_under_the_keys_of_a_plan(tree: dict[str, object]) -> None:
    answer(flow(tree))
    answer(flow({"version": 1, "base": "org/x", "source_ft": "org/y", **tree}))


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "sources.0.", "output.", "masks.1.", "a.b."]), WORDS)
        | st.tuples(st.sampled_from(KEYS), st.text(max_size=10)),
        max_size=4,
    )
)
def test_any_override(pairs: list[tuple[str, str]]) -> None:
    overrides = tuple(f"{key}={value}" for key, value in pairs)
    answer("version: 1\nbase: org/x\nsource_ft: org/y\nmasks: [{scale: 1}]", overrides)


@given(st.binary(max_size=60))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "bytes.yaml"
    file.write_bytes(content)
    with pytest.raises(PlanError):
        load_plan(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "more than 20000 values"),
        ("a: &a [*a]", "`*a` contains itself"),
        ("[" * 100_000, "more than 32 levels"),
        ("- " * 100_000, "more than 32 levels"),
        ("{a: " * 50_000, "more than 32 levels"),
        ("a: 1\n" * 30_000, "more than 20000 values"),
        ("version: " + "9" * 5000, "more than 100 digits"),
        ("scaling: 1" + "0" * 400 + ".0", "expected a finite number"),
        ("output: {shard_size: " + "9" * 90 + "e99}", "expected a size"),
        ("".join(f"k{n}: 1\n" for n in range(200)), "and 154 more"),
    ],
    ids=str.split("laughs cycle brackets dashes braces keys digits infinite size problems"),
)
def test_bounded(text: str, message: str) -> None:
    tracemalloc.start()
    try:
        told = answer(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert message in told
    assert len(told) < 20_000
    assert peak < 100 << 20


def test_reading_a_plan_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "safetensors", "huggingface_hub", "numpy", "click", "tqdm"]
    script = (
        "import sys, mergeengine.plan as plan\n"
        "plan.parse_plan('version: 1\\nbase: org/x\\nsource_ft: org/y\\n', 'p.yaml')\n"
        f"print([name for name in {heavy} if name in sys.modules])\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.strip() == "[]"
