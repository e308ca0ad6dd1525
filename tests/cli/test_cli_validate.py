def test_ok(here, command):
    ended = command("validate", "plan.yaml")
    assert (ended.code, ended.out, ended.err) == (0, "plan.yaml: OK\n", "")


def test_no_model_is_opened(here, command):
    for name in ("target", "base", "ft"):
        (here / name).rename(here / f"{name}-gone")
    assert command("validate", "plan.yaml").code == 0


def test_each_file_gets_its_answer(here, command):
    (here / "wrong.yaml").write_text("version: 1\nscalling: 1\n")
    ended = command("validate", "wrong.yaml", "plan.yaml", "none.yaml")
    assert (ended.code, ended.out) == (2, "plan.yaml: OK\n")
    assert "error: wrong.yaml:1:1: " in ended.err
    assert "did you mean `scaling`" in ended.err
    assert "error: none.yaml: there is no such file" in ended.err


def test_json(here, command):
    ended = command("validate", "plan.yaml", "none.yaml", "--format", "json")
    assert ended.code == 2
    assert ended.json[0] == {"file": "plan.yaml", "valid": True, "error": None}
    assert ended.json[1]["valid"] is False
    assert ended.json[1]["error"].startswith("none.yaml: there is no such file")
