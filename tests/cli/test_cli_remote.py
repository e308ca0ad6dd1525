"""Every command that names models takes URLs."""

import json
from pathlib import Path

import pytest
from remote_stand_in import StandInServer, Trouble

URL_PLAN = """\
version: 1
name: tiny
target: ./target
source_base: URL/base
source_ft: URL/ft
output: {path: out}
"""


@pytest.fixture
def remote_plan(here: Path, web: StandInServer) -> str:
    for role in ("base", "ft"):
        for file in (here / role).iterdir():
            web.files[f"{role}/{file.name}"] = file.read_bytes()
    (here / "remote.yaml").write_text(URL_PLAN.replace("URL", web.url))
    return "remote.yaml"


def test_plan_says_what_will_be_transferred(remote_plan, command, web):
    ended = command("plan", remote_plan)
    assert ended.code == 0
    # Nine tensors less one of integers, which is the target's.
    assert f"transfer     312 B of {web.url}/base, not stored\n" in ended.out
    assert f"             312 B of {web.url}/ft, not stored\n" in ended.out
    assert "download     nothing\n" in ended.out
    document = command("plan", remote_plan, "--format", "json").json
    assert document["bytes"]["remote"] == {f"{web.url}/{role}": 312 for role in ("base", "ft")}
    assert document["bytes"]["download"] == 0


def test_run_lock_and_verify(remote_plan, command, web):
    assert command("validate", remote_plan).code == 0
    assert not web.log
    ended = command("lock", remote_plan)
    assert ended.code == 0
    models = json.loads(Path("remote.lock").read_text())["models"]
    assert set(models) == {"./target", f"{web.url}/base", f"{web.url}/ft"}
    assert command("run", remote_plan, "--locked").code == 0
    assert command("verify", "out").code == 0
    again = command("run", remote_plan)
    assert (again.code, "up to date" in again.err + again.out) == (0, True)


def test_inspect(remote_plan, command, web):
    ended = command("inspect", f"{web.url}/ft")
    assert ended.code == 0
    assert ended.out.startswith(f"model         {web.url}/ft\narchitecture  LlamaForCausalLM")
    assert "tensors       9, 320 B\n" in ended.out
    listed = command("inspect", f"{web.url}/ft/model.safetensors", "--tensors").out
    assert "model.layers.2.self_attn.q_proj.weight  bfloat16  [4, 4]\n" in listed


def test_explain(remote_plan, command):
    ended = command("explain", remote_plan, "model.norm.weight")
    assert ended.code == 0


def test_an_error_names_line_file_and_way_out(remote_plan, command, web):
    web.troubles["ft/model.safetensors"] = [Trouble(403)]
    ended = command("plan", remote_plan)
    assert ended.code == 3
    assert ended.err == (
        f"error: {remote_plan}:5:12: {web.url}/ft/model.safetensors: access is refused "
        "(HTTP 403 Forbidden): check the store's credentials, or the signature of the URL\n"
    )
    ended = command("run", remote_plan, "--offline")
    assert ended.code == 3
    assert "offline mode is on: download the model and give its local path" in ended.err
