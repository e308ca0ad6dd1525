from mergeengine.output.workspace import Workspace


def leave_partial(output):
    with Workspace(output) as workspace:
        workspace.files.mkdir()
        (workspace.files / "model.safetensors").write_bytes(b"x" * 100_000)
    return workspace.path


def test_nothing_to_remove(here, command):
    ended = command("clean")
    assert (ended.code, ended.out, ended.err) == (0, "", "nothing to remove\n")


def test_each_way_of_naming_a_partial_output(here, command):
    for argument in (".", "plan.yaml", "out", ".out.partial", None):
        path = leave_partial(here / "out")
        ended = command("clean", *([argument] if argument else []))
        assert ended.code == 0
        assert ended.out.startswith(f"{path}  ")
        assert ended.err.startswith("freed ")
        assert not path.exists()
    assert (here / "target/model.safetensors").is_file()


def test_a_folder_is_searched_to_its_depths(here, command):
    paths = [leave_partial(here / name) for name in ("a", "deep/down/b")]
    ended = command("clean", "--format", "json")
    assert [entry["path"] for entry in ended.json] == list(map(str, paths))
    assert all(entry["bytes"] >= 100_000 for entry in ended.json)
    assert not any(path.exists() for path in paths)


def test_dry_run(here, command):
    path = leave_partial(here / "out")
    ended = command("clean", "--dry-run")
    assert str(path) in ended.out
    assert ended.err.startswith("would free ")
    assert (path / "files/model.safetensors").is_file()


def test_never_one_in_use(here, command):
    with Workspace(here / "out") as workspace:
        workspace.files.mkdir()
        ended = command("clean", "--format", "json")
        assert ended.json == [{"path": str(workspace.path), "bytes": 0, "in_use": True}]
        assert "in use, left alone" in ended.err
        assert workspace.files.is_dir()


def test_what_only_looks_like_a_partial_output_stays(here, command):
    for name in (".mine.partial", ".other.partial"):
        (here / name).mkdir()
    (here / ".mine.partial/thesis.txt").write_text("years")
    (here / ".other.partial/files").mkdir()
    (here / ".link.partial").symlink_to(here / "target")
    assert command("clean").err == "nothing to remove\n"
    assert (here / ".mine.partial/thesis.txt").is_file()
    assert (here / ".other.partial/files").is_dir()


def test_an_output_that_was_set_aside_comes_back(here, command):
    path = leave_partial(here / "out")
    (path / "replaced").mkdir()
    (path / "replaced/mergeengine.json").write_text("{}")
    command("clean")
    assert (here / "out/mergeengine.json").is_file()
    assert not path.exists()


def test_a_path_that_is_not_there(here, command):
    ended = command("clean", "nowhere")
    assert (ended.code, ended.err) == (
        2,
        "error: nowhere: there is no such file, folder or partial output\n",
    )
