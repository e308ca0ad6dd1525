"""Whatever stands in a configuration, it is read or refused: never anything else."""

import copy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeengine.compiler.merging import method_of
from mergeengine.errors import PlanError
from mergeengine.mergekit.recognition import is_several
from mergeengine.workflow.reading import parse_chain, parse_plan

HERE = Path(__file__).parent
FILES = [*(HERE / "conversions").glob("*.yml"), *(HERE / "published").glob("*.yml")]
DOCUMENTS = [
    list(filter(None, yaml.safe_load_all(path.read_text(encoding="utf-8"))))
    for path in sorted(FILES)
]
PIECES: list[Any] = [
    None, True, 0, -1, 1.5, float("inf"), "", "mlp", "$x ${y}", "a\nb", "\t", "a+b", "@", "+", "*",
    [], [[]], [None], {}, {"filter": "mlp"}, {"value": 1}, {"filter": [], "value": {}},
    [{"value": [1, 2]}],
    {"model": {}}, {"kind": "zero"}, [0, 4], [4, 4], ["a", "b"], 10**400,
]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with a key of it."""
    pairs = list(value.items()) if isinstance(value, dict) else []
    pairs = list(enumerate(value)) if isinstance(value, list) else pairs
    return [(value, key) for key, _ in pairs] + [p for _, child in pairs for p in places(child)]


@settings(max_examples=150)
@given(st.data())
def test_changed_configurations(data: st.DataObject) -> None:
    documents = copy.deepcopy(data.draw(st.sampled_from(DOCUMENTS)))
    for _ in range(data.draw(st.integers(1, 3))):
        found = [each for each in places(documents) if each[0] is not documents]
        if not found:
            break
        container, key = found[data.draw(st.integers(0, len(found) - 1))]
        piece = data.draw(st.sampled_from([*PIECES, "delete", "rename"]))
        if piece == "delete":
            del container[key]
        elif piece == "rename" and isinstance(container, dict):
            container[f"{key}s"] = container.pop(key)
        else:
            container[key] = copy.deepcopy(piece)
    text = yaml.safe_dump_all(documents, sort_keys=False)
    try:
        if is_several(text):
            parse_chain(text, "config.yml")
        else:
            method_of(parse_plan(text, "config.yml"))
    except PlanError:
        return
