"""Local paths and names on the hub."""

import os
from pathlib import Path

import pytest

from mergeengine.values.positions import Position
from mergeengine.values.references import parse_reference


@pytest.mark.parametrize("text", ["./m", "../m", "./m/../../m", "/m", ".", "..", "./a b", "~/m"])
def test_local_paths(text: str, tmp_path: Path) -> None:
    reference = parse_reference(text, tmp_path)
    assert reference.is_local
    assert reference.repo is None
    assert reference.text == text
    assert reference.path == Path(os.path.realpath(tmp_path / Path(text).expanduser()))


def test_a_name_too_long_for_the_file_system_is_still_a_path(tmp_path: Path) -> None:
    reference = parse_reference("./" + "x" * 5000, tmp_path)
    assert reference.path == tmp_path.resolve() / ("x" * 5000)


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_reference("~/m", Path("/elsewhere")).path == tmp_path.resolve() / "m"
    assert parse_reference("~", Path("/elsewhere")).path == tmp_path.resolve()
    with pytest.raises(ValueError, match="there is no such home folder"):
        parse_reference("~nobody-of-that-name/m", tmp_path)


def test_a_link_keeps_its_name_and_dots_follow_links(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "abc").touch()
    (tmp_path / "deep" / "real").mkdir(parents=True)
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "abc")
    (tmp_path / "linked").symlink_to(tmp_path / "deep" / "real")
    link = parse_reference("./model.safetensors", tmp_path).path
    assert link is not None
    assert link.name == "model.safetensors"
    assert parse_reference("./linked/../m", tmp_path).path == tmp_path.resolve() / "deep" / "m"


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("gpt2", "gpt2", None),
        ("org/name", "org/name", None),
        ("meta-llama/Llama-3.1-8B@0e9e39f", "meta-llama/Llama-3.1-8B", "0e9e39f"),
        ("org/name@refs/pr/1", "org/name", "refs/pr/1"),
        ("org/name@v1.0-rc.1", "org/name", "v1.0-rc.1"),
        ("a_b/C.d_e-f", "a_b/C.d_e-f", None),
    ],
)
def test_names_on_the_hub(text: str, repo: str, revision: str | None, tmp_path: Path) -> None:
    reference = parse_reference(text, tmp_path, Position("p.yaml", 1, 2))
    assert (reference.path, reference.repo, reference.revision) == (None, repo, revision)
    assert str(reference.position) == "p.yaml:1:2"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("checkpoints/a/b", "a local path begins with ./ ../ / or ~; did you mean `./checkp"),
        ("checkpoints/", "did you mean `./checkpoints/`?"),
        ("model.safetensors", "did you mean `./model.safetensors`?"),
        ("out/model.safetensors", "did you mean `./out/model.safetensors`?"),
        (r"C:\models\a", "its folders are separated by /"),
        (r".\models", "its folders are separated by /"),
        ("C:/models", "its folders are separated by /"),
        ("https://huggingface.co/org/name", "write `org/name`"),
        ("hf://org/name@main", "write `org/name@main`"),
        ("s3://bucket/name", "URLs are not read"),
        ("", "expected a text that is not empty"),
        (" ", "expected a text that is not empty"),
        (" org/name", "begins or ends with a space"),
        ("org/na\nme", "cannot be printed"),
        ("./a\0b", "cannot be printed"),
        ("org/name@", "names no revision"),
        ("org/name@a b", "`a b` is not a revision"),
        ("org/name@../../x", "is not a revision"),
        ("org/-name", "expected org/name[@revision] on the hub"),
        (".hidden/name", "expected org/name[@revision] on the hub"),
        ("@v1", "is not a model reference"),
        ("x" * 200, "is not a model reference"),
    ],
)
def test_what_is_no_reference(text: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as raised:
        parse_reference(text, tmp_path)
    assert hint in str(raised.value)
