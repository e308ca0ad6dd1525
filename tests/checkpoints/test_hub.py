import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import entry, safetensors, with_header
from hub_stand_in import COMMIT, OTHER, StandInHub
from huggingface_hub import close_session, constants

from mergeengine.checkpoints import Checkpoint, open_checkpoint
from mergeengine.checkpoints import hub as hub_module
from mergeengine.errors import CheckpointError
from mergeengine.values.positions import Position
from mergeengine.values.references import ModelReference

REPO = "org/model"
INDEX = "model.safetensors.index.json"
A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDS = {A: {"a": ("F32", [200, 1000])}, B: {"b": ("BF16", [400, 1000])}}


def files(fill: int = 0) -> dict[str, bytes]:
    weight_map = {name: file for file, tensors in SHARDS.items() for name in tensors}
    return {
        "config.json": json.dumps({"model_type": "llama", "fill": fill}).encode(),
        "tokenizer.json": b"{}",
        "README.md": b"# a model",
        "pytorch_model.bin": b"never fetched",
        "original/params.json": b"{}",
        INDEX: json.dumps({"weight_map": weight_map}).encode(),
        **{file: safetensors(tensors, fill) for file, tensors in SHARDS.items()},
    }


@pytest.fixture
def hub(empty_hub: StandInHub) -> StandInHub:
    """A hub with one model of two commits."""
    empty_hub.models[REPO] = {COMMIT: files(), OTHER: files(fill=1)}
    return empty_hub


def places(checkpoint: Checkpoint) -> dict[str, object]:
    """Where tensors lie; not when their files were fetched."""
    return {
        name: (t.dtype, t.shape, t.file.path, t.offset) for name, t in checkpoint.tensors.items()
    }


def refused(reference: str | ModelReference = REPO, **options: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(reference, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith(str(reference))
    assert "\n" not in message
    return message


def test_opening_fetches_headers_and_documents_only(hub: StandInHub, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(REPO)
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.revision == COMMIT
    assert checkpoint.config == {"model_type": "llama", "fill": 0}
    snapshot = tmp_path / "cache" / "models--org--model" / "snapshots" / COMMIT
    assert checkpoint.folder == snapshot
    assert [f.path for f in checkpoint.files] == [snapshot / A, snapshot / B]
    assert checkpoint.missing_files(checkpoint.files) == checkpoint.files
    assert sum(f.size for f in checkpoint.files) == sum(len(files()[n]) for n in SHARDS)
    assert checkpoint.fingerprint() == f"{REPO}@{COMMIT}"
    assert {name for _, name, _ in hub.log} == {"api", "config.json", INDEX, A, B}
    assert sum(size for _, name, size in hub.log if name == A) == 256 * 1024 < len(files()[A])


def test_files_are_fetched_when_asked_for_and_once(hub: StandInHub) -> None:
    checkpoint = open_checkpoint(REPO)
    before = checkpoint.identity()
    hub.log.clear()
    wanted = [checkpoint.tensors["b"].file]
    checkpoint.fetch(wanted)
    checkpoint.fetch(wanted)
    assert [(m, n) for m, n, _ in hub.log] == [("HEAD", B), ("GET", B)]
    assert wanted[0].path.read_bytes() == files()[B]
    assert checkpoint.missing_files(checkpoint.files) == (checkpoint.files[0],)
    again = open_checkpoint(REPO).identity()
    assert again[0] == before[0] == (str(checkpoint.files[0].path), checkpoint.files[0].size, 0, 0)
    assert again[1] != before[1]
    hub.log.clear()
    again = open_checkpoint(REPO)  # the header of what is there is read from there
    assert places(again) == places(checkpoint)
    assert {name for _, name, _ in hub.log} == {"api", A}


def test_companions_come_on_demand(hub: StandInHub) -> None:
    checkpoint = open_checkpoint(REPO)
    names = ("README.md", "config.json", "original/params.json", "tokenizer.json")
    assert checkpoint.companions() == names
    hub.log.clear()
    path = checkpoint.companion("tokenizer.json")
    assert path is not None
    assert path.read_bytes() == b"{}"
    assert checkpoint.companion("generation_config.json") is None
    assert {name for _, name, _ in hub.log} == {"tokenizer.json"}


@pytest.mark.parametrize("text", [f"{REPO}@{OTHER}", f"{REPO}@{OTHER[:7]}", f"hf://{REPO}@{OTHER}"])
def test_a_revision_is_taken_and_resolved(text: str, hub: StandInHub) -> None:
    checkpoint = open_checkpoint(text)
    assert checkpoint.revision == OTHER
    assert checkpoint.config == {"model_type": "llama", "fill": 1}


def test_a_pinned_commit_comes_before_the_revision(hub: StandInHub) -> None:
    assert open_checkpoint(f"{REPO}@main", pinned=OTHER).revision == OTHER
    message = refused(f"{REPO}@main", pinned="f" * 40)
    assert f"the locked commit {'f' * 40} is not in {hub.url}/{REPO} any more" in message
    assert "mergeengine lock --update" in message


def test_a_header_longer_than_the_first_read(hub: StandInHub) -> None:
    header = {f"layer.{i}.weight": entry(i * 4, [1]) for i in range(6000)}
    content = with_header(header, bytes(24_000 + 300_000)[:24_000])
    assert len(content) > 256 * 1024 + 24_000
    hub.models[REPO] = {COMMIT: {"model.safetensors": content}}
    assert len(open_checkpoint(REPO).tensors) == 6000
    hub.ignores_ranges = True  # then the beginning of the whole answer is taken
    assert len(open_checkpoint(REPO).tensors) == 6000


def test_a_lying_header_on_the_hub_is_refused_by_file(hub: StandInHub) -> None:
    hub.models[REPO][COMMIT][A] = (10**9).to_bytes(8, "little") + b"{" * 100
    assert f"{REPO}: {A}: not a safetensors file" in refused()
    hub.models[REPO][COMMIT][A] = b""
    assert f"{REPO}: {A}: the file is truncated" in refused()
    del hub.models[REPO][COMMIT][A]
    assert "1 of the 2 files" in refused()


class TestOffline:
    def test_a_cached_model_opens_without_the_hub(self, hub: StandInHub) -> None:
        checkpoint = open_checkpoint(REPO)
        checkpoint.fetch(checkpoint.files)
        hub.log.clear()
        for reference in (REPO, f"{REPO}@{COMMIT[:8]}", f"{REPO}@{COMMIT}"):
            offline = open_checkpoint(reference, offline=True)
            assert offline.revision == COMMIT
            assert list(offline.tensors) == list(checkpoint.tensors)
            assert places(offline) == places(checkpoint)
            assert offline.companions() == ("config.json",)
            assert offline.missing_files(offline.files) == ()
        assert open_checkpoint(REPO, pinned=COMMIT, offline=True).revision == COMMIT
        assert hub.log == []

    def test_the_library_s_offline_mode_counts(
        self, hub: StandInHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checkpoint = open_checkpoint(REPO)
        checkpoint.fetch(checkpoint.files)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert places(open_checkpoint(REPO)) == places(checkpoint)

    def test_missing_weights_are_named(self, hub: StandInHub) -> None:
        checkpoint = open_checkpoint(REPO)
        checkpoint.fetch(checkpoint.files[:1])
        message = refused(offline=True)
        assert "1 of the 2 files" in message
        assert B in message

    @pytest.mark.parametrize("text", [REPO, "org/other", f"{REPO}@v2", f"{REPO}@{OTHER}"])
    def test_what_is_not_cached_says_so(self, text: str, hub: StandInHub) -> None:
        if text != REPO:
            open_checkpoint(REPO)
        message = refused(text, offline=True)
        assert "offline mode is on, and the local cache" in message
        assert "run once with a connection" in message

    def test_no_connection_falls_back_to_the_cache_and_says_so(
        self, hub: StandInHub, caplog: pytest.LogCaptureFixture
    ) -> None:
        checkpoint = open_checkpoint(REPO)
        checkpoint.fetch(checkpoint.files)
        hub.stop()
        close_session()  # or a connection kept alive would still be answered
        with caplog.at_level(logging.WARNING, logger=hub_module.__name__):
            assert places(open_checkpoint(REPO)) == places(checkpoint)
        assert "using the local cache" in caplog.text
        assert "the hub fails" in refused("org/other")

    def test_a_hub_in_trouble_falls_back_to_the_cache(self, hub: StandInHub) -> None:
        checkpoint = open_checkpoint(REPO)
        checkpoint.fetch(checkpoint.files)
        hub.broken["api"] = [500] * 20
        assert places(open_checkpoint(REPO)) == places(checkpoint)

    def test_a_moved_branch_is_remembered(self, hub: StandInHub) -> None:
        for commit in (COMMIT, OTHER):
            hub.models[REPO] = {commit: files()}
            checkpoint = open_checkpoint(REPO)
            checkpoint.fetch(checkpoint.files)
            assert open_checkpoint(REPO, offline=True).revision == commit

    def test_a_cache_that_links_elsewhere_is_refused(self, hub: StandInHub, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(REPO)
        checkpoint.fetch(checkpoint.files)
        shutil.copy(checkpoint.files[0].path, tmp_path / "elsewhere")
        checkpoint.files[0].path.unlink()
        checkpoint.files[0].path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(CheckpointError, match="outside its model's folder"):
            open_checkpoint(REPO, offline=True)


class TestErrors:
    def test_a_gated_model(self, hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.gated.add(REPO)
        message = refused()
        assert f"gated: ask for access at {hub.url}/{REPO}" in message
        assert "HF_TOKEN" in message
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert list(open_checkpoint(REPO).tensors) == ["a", "b"]
        assert hub.tokens == {None, "Bearer hf_secret"}

    def test_an_unknown_model_and_a_local_folder_of_its_name(
        self, hub: StandInHub, tmp_path: Path
    ) -> None:
        message = refused("org/none")
        assert f"there is no model org/none at {hub.url}, or it is private" in message
        assert "./" not in message
        (tmp_path / "plans" / "org" / "none").mkdir(parents=True)
        position = Position(str(tmp_path / "plans" / "p.yaml"), 3, 1)
        reference = ModelReference("org/none", repo="org/none", position=position)
        assert "write ./org/none for it" in refused(reference)
        assert "write ./org/none for it" in refused(reference, offline=True)

    def test_an_unknown_revision(self, hub: StandInHub) -> None:
        message = refused(f"{REPO}@v9")
        assert f"{hub.url}/{REPO} has no branch, tag or commit 'v9'" in message

    @pytest.mark.parametrize("text", ["a/b/c", "org/na--me", "org/mo del", "-x"])
    def test_what_cannot_be_a_name(self, text: str, hub: StandInHub) -> None:
        assert "cannot be the name of a hub model" in refused(ModelReference(text, repo=text))
        assert hub.log == []

    @pytest.mark.parametrize("text", ["a/b/c", "org/mo del", "-x"])
    def test_a_text_that_is_no_reference(self, text: str, hub: StandInHub) -> None:
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(text)
        assert f"`{text}` is not a model reference" in str(caught.value)
        assert hub.log == []

    def test_a_refusal_of_another_kind(self, hub: StandInHub) -> None:
        hub.broken["api"] = [403]
        assert "the hub refuses" in refused()

    def test_trouble_while_reading_a_header_is_retried(self, hub: StandInHub) -> None:
        hub.broken[A] = [503, 500]
        assert list(open_checkpoint(REPO).tensors) == ["a", "b"]
        hub.broken[B] = [503, 503, 503]
        assert f"reading the header of {B} from the hub failed: " in refused()
        hub.broken[B] = [403, 500]
        assert f"reading the header of {B} from the hub failed: " in refused()
        assert hub.broken[B] == [500]

    def test_a_failed_download(self, hub: StandInHub) -> None:
        checkpoint = open_checkpoint(REPO)
        hub.broken[A] = [403, 403]
        with pytest.raises(CheckpointError, match=f"downloading {A} failed: .*run the same"):
            checkpoint.fetch(checkpoint.files)
        assert checkpoint.missing_files(checkpoint.files) == checkpoint.files
        hub.broken.clear()
        checkpoint.fetch(checkpoint.files)
        assert checkpoint.missing_files(checkpoint.files) == ()

    def test_a_damaged_cached_file(self, hub: StandInHub) -> None:
        checkpoint = open_checkpoint(REPO)
        checkpoint.fetch(checkpoint.files)
        os.truncate(checkpoint.files[0].path, 100)
        with pytest.raises(CheckpointError, match="is damaged: 100 bytes, but the hub says"):
            open_checkpoint(REPO)

    def test_a_quota_of_documents(self, hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hub_module, "MAX_DOCUMENT", 10)
        assert f"{INDEX} is implausibly large" in refused()
        assert {name for _, name, _ in hub.log} == {"api"}


def test_the_library_s_environment_is_respected(hub: StandInHub, tmp_path: Path) -> None:
    code = (
        "from mergeengine.checkpoints import Checkpoint, open_checkpoint\n"
        f"checkpoint = open_checkpoint({REPO!r})\n"
        "checkpoint.fetch(checkpoint.files)\n"
        "print(checkpoint.files[0].path)\n"
    )
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_x"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    path = Path(done.stdout.strip())
    assert path == tmp_path / "home/hub/models--org--model/snapshots" / COMMIT / A
    assert path.read_bytes() == files()[A]
    assert "Bearer hf_x" in hub.tokens
