import re

import pytest
import yaml
from companion_models import make_model

from mergeengine.output.card import MergedModel, model_card, read_licence

PLAN = """\
version: 1
name: recycled
target: org/new@abc
source_base: org/old
source_ft: ./old-ft
"""
MODELS = (
    MergedModel("target", "org/new@abc", "abc123", "mit"),
    MergedModel("source_base", "org/old", None, "mit"),
    MergedModel("source_ft", "./old-ft", None, "mit"),
)


def card(models=MODELS, *, plan=PLAN, name="recycled") -> tuple[dict, str]:
    text = model_card(name=name, plan_text=plan, references=models, version="0.1.0")
    _, front_matter, body = text.split("---\n", 2)
    return yaml.safe_load(front_matter), body


def test_card_as_a_whole():
    text = model_card(name="recycled", plan_text=PLAN, references=MODELS, version="0.1.0")
    assert (
        text
        == """\
---
base_model:
- org/new
- org/old
base_model_relation: merge
license: mit
library_name: transformers
tags:
- merge
- mergeengine
---

# recycled

A merge of existing models. Its weights were computed from theirs, without any training:

    merged = target + Σᵢ scalingᵢ · maskᵢ ⊙ (source_ftᵢ − source_baseᵢ)

A delta (what fine-tuning changed between `source_base` and `source_ft`) is added to `target`;
the plan below says which, how much of it, and for which tensors.

| Role | Model | Revision | Licence |
|---|---|---|---|
| target | [org/new](https://huggingface.co/org/new) | `abc123` | mit |
| source_base | [org/old](https://huggingface.co/org/old) | - | mit |
| source_ft | ./old-ft (local) | - | mit |

The licences of all of these models apply.

## How to reproduce

Made by mergeengine 0.1.0. Save the plan as `plan.yaml` and run
`mergeengine run plan.yaml`; local paths in it start at its folder. `mergeengine.json` holds the
revisions of all inputs and a digest of every tensor; `mergeengine verify` checks them.

```yaml
version: 1
name: recycled
target: org/new@abc
source_base: org/old
source_ft: ./old-ft
```
"""
    )


def test_a_model_in_two_roles_is_one_base_model():
    front_matter, _ = card([MergedModel("target", "org/a"), MergedModel("source_base", "org/a")])
    assert front_matter["base_model"] == ["org/a"]


@pytest.mark.parametrize("path", ["./ft", "../ft", "~/ft", "/home/me/models/ft"])
def test_local_models_are_named_in_the_text_only(path):
    front_matter, body = card([MergedModel("source_ft", path)])
    assert front_matter.keys() == {"library_name", "tags"}
    assert "ft (local)" in body
    assert "/home/me" not in body  # the rest of an absolute path is this machine's


@pytest.mark.parametrize(
    ("licences", "stated"),
    [
        (["mit", "mit"], "mit"),
        (["mit", "llama3"], "other"),
        (["mit", None], "other"),
        ([None, None], None),
    ],
)
def test_licence_only_where_all_inputs_state_the_same(licences, stated):
    models = [MergedModel("source", f"org/{i}", None, name) for i, name in enumerate(licences)]
    front_matter, body = card(models)
    assert front_matter.get("license") == stated
    for name in licences:
        assert f"| {name or 'not stated'} |" in body


@pytest.mark.parametrize("ticks", ["`", "```", "`````"])
def test_fence_is_longer_than_any_in_the_plan(ticks):
    plan = f"name: x\n# {ticks}\n{ticks}yaml\n# not the end\n"
    _, body = card(plan=plan)
    fence = re.search(r"^(`+)yaml\n(.*?)\n\1\n", body, re.DOTALL | re.MULTILINE)
    assert fence is not None
    assert fence[2] == plan.rstrip()
    assert len(fence[1]) > len(ticks)


def test_names_cannot_break_out_of_their_line():
    _, body = card([MergedModel("a|b", "./x|y\n# heading", None, None)], name="one\n---\n# another")
    assert "# one --- # another\n" in body
    assert "| a\\|b | ./x\\|y # heading (local) | - | not stated |" in body


# --- the licence of an input -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# x\n", "apache-2.0"),
        ("---\r\ntags:\r\n- a\r\nlicense: mit\r\n---\r\n", "mit"),
        ('---\nlicense: "llama3.1"  # community\n---\n', "llama3.1"),
        ("---\nlicense:\n- mit\n---\n", "mit"),
        ("\ufeff---\nlicense: mit\n---\n", "mit"),
        ("---\nbase_model: org/x\nlicense: other\nlicense_name: llama3\n---\n", "other"),
        # an unreadable entry elsewhere does not hide the licence
        ("---\nlicense: mit\nmetrics: {[\n---\n", "mit"),
        ("---\nlicense:\n- mit\n- apache-2.0\n---\n", None),
        ("---\nlicense:\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\nlicense: 3\n---\n", None),
        ("---\nlicense: !!python/object/apply:os.abort []\n---\n", None),
        ("---\nlicense: " + "[" * 900 + "\n---\n", None),
        ("---\nlicense: " + "m" * 70 + "\n---\n", None),
        ('---\nlicense: "mit | x\\n# heading"\n---\n', None),
        ("---\nlicense:mit\n---\n", None),
        ("---\ntags: [license]\n  license: mit\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("# x\n\nlicense: mit\n", None),
        ("# x\n---\nlicense: mit\n---\n", None),
        ("", None),
        (b"---\nlicense: \xff\n---\n", None),
    ],
)
def test_read_licence(tmp_path, readme, licence):
    content = readme if isinstance(readme, bytes) else readme.encode()
    assert read_licence(make_model(tmp_path / "m", {"README.md": content})) == licence


def test_no_card_no_licence(tmp_path):
    assert read_licence(make_model(tmp_path / "m")) is None
