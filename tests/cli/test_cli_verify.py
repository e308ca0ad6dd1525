import os


def flip_last_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=times)


def test_intact(here, command):
    command("run", "plan.yaml")
    ended = command("verify", "out")
    assert ended.code == 0
    assert ended.out.startswith("out: OK, ")
    assert "checking" in ended.err
    document = command("verify", "out", "--format", "json").json
    assert document == {"output": "out", "intact": True, "differences": []}


def test_every_difference_is_listed(here, command):
    command("run", "plan.yaml")
    flip_last_byte(here / "out/model.safetensors")
    (here / "out/config.json").write_text("{}")
    (here / "out/more.txt").write_text("added")
    (here / "out/README.md").unlink()
    ended = command("verify", "out")
    assert (ended.code, ended.out) == (7, "")
    for difference in (
        "config.json was changed",
        "more.txt was added",
        "README.md is missing",
        "differ from the manifest",
    ):
        assert difference in ended.err
    assert len(command("verify", "out", "--format", "json").json["differences"]) == 4


def test_what_is_no_output(here, command):
    ended = command("verify", "target")
    assert (ended.code, "no mergeengine.json" in ended.err) == (7, True)
    assert command("verify", "nowhere").code == 2
