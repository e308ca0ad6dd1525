"""``plan --diff``, ``explain --table`` and ``explain --png``."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file
from test_cli_explain import SEVERAL

DIFFERENCE = """\
name: tiny → tidy
output.tokenizer: the default → target
model.layers.{1-2}.self_attn.q_proj.weight  bfloat16 [4, 4]
model.norm.weight                           bfloat16 [4]
  source1: 0.7 → 0.8
model.layers.{1-2}.mlp.up_proj.weight  bfloat16 [6, 4]
  source1: 0.35 → 0.4
model.embed_tokens.weight  float32 [8, 4]
  source1: 0.7 → 0.8
  bfloat16 [8, 4] → float32 [8, 4]
"""


def test_difference(here, command):
    text = (here / "plan.yaml").read_text()
    text = text.replace("name: tiny", "name: tidy").replace("scaling: 0.7", "scaling: 0.8")
    text += "  tokenizer: target\n  dtype: [{match: '*embed*', dtype: float32}]\n"
    (here / "new.yaml").write_text(text)
    ended = command("plan", "--diff", "plan.yaml", "new.yaml")
    assert ended.code == 0
    told = ended.out.splitlines()
    assert sorted(told[:-1]) == sorted(DIFFERENCE.splitlines())
    assert told[-1] == "6 tensors are made otherwise, 3 as before"
    document = command("plan", "--diff", "plan.yaml", "new.yaml", "--format", "json").json
    assert document["unchanged"] == 3
    assert {"tensors", "what"} == set(document["changes"][0])


def test_models_and_set(here, command):
    text = (here / "plan.yaml").read_text().replace("source_ft: ./ft", "source_ft: ./target")
    (here / "new.yaml").write_text(text)
    assert command("plan", "--diff", "plan.yaml", "new.yaml").out == (
        "source_ft: ./ft → ./target\n0 tensors are made otherwise, 9 as before\n"
    )
    ended = command("plan", "--diff", "plan.yaml", "plan.yaml", "--set", "masks=[]")
    assert ended.out.endswith("4 tensors are made otherwise, 5 as before\n")
    assert "  source1: 0 → 0.7\n" in ended.out
    assert command("plan", "--diff", "plan.yaml", "plan.yaml", "--sweep", "scaling=1,2").code == 2


def test_inputs_that_have_changed_since_they_were_locked(here, command):
    shapes = {"model.norm.weight": (4,)}
    masks = {name: torch.ones(shape) for name, shape in shapes.items()}
    for file in ("one", "two"):
        save_file(masks, here / f"{file}.safetensors")
    text = (here / "plan.yaml").read_text().split("masks:")[0] + "masks:\n"
    for file, glob in (("one", "*norm*"), ("two", "*.0.*")):
        text += f"  - {{match: '{glob}', file: {file}.safetensors, default: 1}}\n"
    text += "  - {match: '*embed*', tokens: [b]}\n"
    (here / "plan.yaml").write_text(text)
    tokenizer = '{"model": {"vocab": {"a": 0, "b": %d}}}'
    (here / "target" / "tokenizer.json").write_text(tokenizer % 1)
    assert command("lock", "plan.yaml").code == 0
    same = command("plan", "--diff", "plan.yaml", "plan.yaml")
    assert same.out == "0 tensors are made otherwise, 9 as before\n"
    masks["model.norm.weight"][0] = 0
    save_file(masks, here / "two.safetensors")
    (here / "target" / "tokenizer.json").write_text(tokenizer % 2)
    lock = json.loads((here / "plan.lock").read_text())["models"]
    told = command("plan", "--diff", "plan.yaml", "plan.yaml").out.splitlines()
    assert told[0].startswith(f"mask: two.safetensors ({lock['two.safetensors']} → xxh3:")
    assert told[1:] == [
        "token b of ./target: 1 → 2",
        "0 tensors are made otherwise, 9 as before, of inputs that have changed",
    ]
    document = command("plan", "--diff", "plan.yaml", "plan.yaml", "--format", "json").json
    assert document["inputs_changed"] is True
    (here / "new.yaml").write_text(text.replace("two.saf", "one.saf"))
    told = command("plan", "--diff", "plan.yaml", "new.yaml").out.splitlines()
    assert told[0] == "mask: two.safetensors → none"


def test_a_source_more(here, command):
    (here / "new.yaml").write_text(SEVERAL)
    assert "  math: no delta → 0.5" in command("plan", "--diff", "plan.yaml", "new.yaml").out


TABLE = """\
layers  up_proj  q_proj
     0        0       0
   1-2     0.35     0.7
outside of layers: embed_tokens 0.7, norm 0.7
"""


def test_table(here, command):
    ended = command("explain", "plan.yaml", "--table")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == TABLE
    assert command("explain", "plan.yaml", "--table", "--format", "json").json[0]["outside"] == {
        "embed_tokens": [0.7, 0.7],
        "norm": [0.7, 0.7],
    }


def test_a_table_for_each_source(here, command):
    (here / "plan.yaml").write_text(SEVERAL)
    out = command("explain", "plan.yaml", "--table").out
    assert out.startswith("math\nlayers  up_proj  q_proj\n   0-2      0.5     0.5\n")
    assert "\ncode\n" in out
    assert command("explain", "plan.yaml", "*norm*", "--table").out == (
        "math\ntensor  scale\n  norm    0.5\n\ncode\ntensor  scale\n  norm      0\n"
    )


def test_what_gets_no_delta(here, command):
    out = command("explain", "plan.yaml", "model.steps", "--table").out
    assert out == "no tensor gets a delta\n"


def test_png(here, command):
    pytest.importorskip("matplotlib")
    ended = command("explain", "plan.yaml", "--png", "map.png")
    assert (ended.code, ended.out, ended.err) == (0, "", "wrote map.png\n")
    assert (here / "map.png").read_bytes().startswith(b"\x89PNG")
    assert command("explain", "plan.yaml", "--png", "map.png").code == 0
    ended = command("explain", "plan.yaml", "--png", "plan.yaml")
    assert (ended.code, "another kind" in ended.err) == (5, True)


def test_png_without_matplotlib(here, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    ended = command("explain", "plan.yaml", "--png", "map.png")
    assert (ended.code, ended.err) == (
        4,
        "error: --png needs matplotlib, which is not installed: pip install 'mergeengine[plot]'\n",
    )
    assert not (here / "map.png").exists()
