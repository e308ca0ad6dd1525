"""Local paths and names on the hub."""

import os
import re
from pathlib import Path

import pytest

from mergeengine.values.positions import Position
from mergeengine.values.references import REFERENCE, parse_reference, public, without_secrets


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
        ("hf://org/name/folder", "expected hf://org/name[@revision], a whole model"),
        ("file:///a/b", "write the path itself; a local path begins with"),
        ("s3://", "names no model"),
        ("https:///", "names no model"),
        ("simplecache::s3://bucket/name", "URLs of several schemes are not read"),
        ("s3://bucket/name?versionId=1", "only http and https URLs may have a query"),
        ("https://host/m#part", "and none a fragment"),
        ("https://host/m?key=1", "a query belongs to one file"),
        ("https://me:GEHEIM@host/m", "has a user or password before its host"),
        ("https://GEHEIM@host/m", "has a user or password before its host"),
        ("s3://me:GEHEIM@bucket/m", "has a user or password before its host"),
        ("abfs://me:GEHEIM@account/m", "has a user or password before its host"),
        ("https://me:GEHEIM@host/m?sig=GEHEIM", "has a user or password before its host"),
        ("wrong::https://me:GEHEIM@host/m?sig=GEHEIM", "is not a model reference"),
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
    assert "GEHEIM" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "url", "shown"),
    [
        ("s3://bucket/some/m", "s3://bucket/some/m", "s3://bucket/some/m"),
        ("gs://bucket", "gs://bucket", "gs://bucket"),
        ("https://host:8/m/", "https://host:8/m", "https://host:8/m/"),
        ("memory://a/x.safetensors", "memory://a/x.safetensors", "memory://a/x.safetensors"),
        (
            "https://h/x.safetensors?sig=GEHEIM&t=1",
            "https://h/x.safetensors?sig=GEHEIM&t=1",
            "https://h/x.safetensors?...",
        ),
        ("abfs://box@account.net/m", "abfs://box@account.net/m", "abfs://box@account.net/m"),
        ("s3://bucket/a@b", "s3://bucket/a@b", "s3://bucket/a@b"),
        (
            "https://huggingface.co/a/b/resolve/main/x.safetensors",
            "https://huggingface.co/a/b/resolve/main/x.safetensors",
            "https://huggingface.co/a/b/resolve/main/x.safetensors",
        ),
    ],
)
def test_urls(text: str, url: str, shown: str, tmp_path: Path) -> None:
    reference = parse_reference(text, tmp_path)
    assert (reference.url, str(reference)) == (url, shown)
    assert (reference.path, reference.repo, reference.is_local) == (None, None, False)
    assert "GEHEIM" not in repr(reference)
    assert re.search(REFERENCE, text)


def test_hf_urls_are_names_on_the_hub(tmp_path: Path) -> None:
    reference = parse_reference("hf://org/name@v1", tmp_path)
    assert (reference.repo, reference.revision, reference.url) == ("org/name", "v1", None)
    assert str(reference) == "hf://org/name@v1"


def test_what_may_be_written_down() -> None:
    plan = {
        "target": "https://h/x.safetensors?sig=GEHEIM",
        "vars": {"key": "sig=GEHEIM", "other": "GEH", "layers": [1, "2-3"]},
        "source_ft": ["s3://b/m", None, True],
    }
    assert without_secrets(plan) == {
        "target": "https://h/x.safetensors?...",
        "vars": {"key": "...", "other": "...", "layers": [1, "2-3"]},
        "source_ft": ["s3://b/m", None, True],
    }
    assert without_secrets({"KEY": "GEHEIM", "SCALE": "0.5"}, plan) == {
        "KEY": "...",
        "SCALE": "0.5",
    }
    assert public("two: https://u:p@h/a?b=c 'https://h/d?e' end") == (
        "two: https://...@h/a?... 'https://h/d?...' end"
    )
