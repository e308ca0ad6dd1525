import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkpoint_files import safetensors, write_json, write_sharded

from mergeengine.checkpoints import Checkpoint, fingerprint, open_checkpoint
from mergeengine.checkpoints.reading import Read, opened
from mergeengine.lazy.stored import Stored
from mergeengine.values.references import ModelReference

TENSORS = {"a": ("BF16", [100, 70]), "b": ("F32", [3]), "c": ("I64", []), "none": ("F32", [0])}


def write(folder: Path, fill: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(safetensors(TENSORS, fill))
    write_json(folder / "config.json", {"model_type": "llama", "limit": float("inf")})
    return folder


def test_a_reference_and_its_text_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "m")
    checkpoint = open_checkpoint(ModelReference("./m", path=tmp_path / "m"))
    assert str(checkpoint) == "./m"
    assert checkpoint.tensors["a"].source == "./m"
    assert checkpoint.config == {"model_type": "llama", "limit": float("inf")}
    assert checkpoint.revision is None


def test_a_text_is_a_path_where_it_begins_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for text in ("./m", "~/m", str(tmp_path / "m"), "./m/model.safetensors"):
        checkpoint = open_checkpoint(text)
        assert len(checkpoint.tensors) == 4
        assert checkpoint.files[0].path == tmp_path / "m" / "model.safetensors"


def test_tensors_cannot_be_changed(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path))
    with pytest.raises(TypeError):
        checkpoint.tensors["a"] = checkpoint.tensors["b"]  # type: ignore[index]


def test_local_files_need_no_fetching(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path))
    assert checkpoint.missing_files(checkpoint.files) == ()
    checkpoint.fetch(checkpoint.files)


class TestFingerprint:
    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Checkpoint:
        return open_checkpoint(write(tmp_path / "m"))

    def test_copies_elsewhere_and_later_are_equal(
        self, checkpoint: Checkpoint, tmp_path: Path
    ) -> None:
        copy = write(tmp_path / "elsewhere" / "copy")
        os.utime(copy / "model.safetensors", (1, 1))
        assert open_checkpoint(copy).fingerprint() == checkpoint.fingerprint()
        assert checkpoint.fingerprint().startswith("xxh3:")

    def test_a_single_file_is_equal_under_another_name(self, tmp_path: Path) -> None:
        write(tmp_path)
        (tmp_path / "x.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
        one, two = (open_checkpoint(tmp_path / f"{n}.safetensors") for n in ("model", "x"))
        assert one.fingerprint() == two.fingerprint() != open_checkpoint(tmp_path).fingerprint()

    @pytest.mark.parametrize("name", ["a", "b", "c"])
    def test_other_values_of_any_tensor_differ(
        self, name: str, checkpoint: Checkpoint, tmp_path: Path
    ) -> None:
        before = checkpoint.fingerprint()
        tensor = checkpoint.tensors[name]
        overwrite(tensor, 0, b"\xee" * tensor.nbytes)
        assert open_checkpoint(tmp_path / "m").fingerprint() != before

    def test_another_config_and_another_name_of_a_tensor_differ(
        self, checkpoint: Checkpoint, tmp_path: Path
    ) -> None:
        seen = {checkpoint.fingerprint()}
        path = tmp_path / "m" / "model.safetensors"
        path.write_bytes(path.read_bytes().replace(b'"none"', b'"nine"'))
        seen.add(open_checkpoint(tmp_path / "m").fingerprint())
        write_json(tmp_path / "m" / "config.json", {"model_type": "other"})
        seen.add(open_checkpoint(tmp_path / "m").fingerprint())
        (tmp_path / "m" / "config.json").unlink()
        seen.add(open_checkpoint(tmp_path / "m").fingerprint())
        assert len(seen) == 4

    @pytest.mark.parametrize("size", [0, 1, 1023, 1025, 5000])
    def test_of_every_tensor_the_first_or_the_last_kilobyte_is_read(
        self, size: int, tmp_path: Path
    ) -> None:
        path = tmp_path / "model.safetensors"
        data = safetensors({f"t{i}": ("U8", [size + i]) for i in range(9)})
        path.write_bytes(data)
        checkpoint = open_checkpoint(tmp_path)
        before = checkpoint.fingerprint()
        for tensor in checkpoint.tensors.values():
            part = min(1024, tensor.nbytes)
            for place in (0, tensor.nbytes - part):
                overwrite(tensor, place, b"\xee" * part)
            assert (open_checkpoint(tmp_path).fingerprint() != before) == (part > 0)
            path.write_bytes(data)

    def test_of_a_large_tensor_the_end_is_read(self, tmp_path: Path) -> None:
        tensors = {"a": ("U8", [5000]), "embedding": ("U8", [1 << 24]), "b": ("U8", [5000])}
        (tmp_path / "model.safetensors").write_bytes(safetensors(tensors))
        checkpoint = open_checkpoint(tmp_path)
        before = checkpoint.fingerprint()
        overwrite(checkpoint.tensors["embedding"], (1 << 24) - 1, b"\xee")
        assert open_checkpoint(tmp_path).fingerprint() != before

    def test_one_read_samples_two_tensors(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reads: list[tuple[int, int]] = []

        @contextmanager
        def counted(path: Path) -> Iterator[Read]:
            with opened(path) as read:

                def count(offset: int, size: int) -> bytes:
                    reads.append((offset, size))
                    return read(offset, size)

                yield count

        (tmp_path / "model.safetensors").write_bytes(
            safetensors({f"t{i}": ("U8", [5000]) for i in range(100)})
        )
        checkpoint = open_checkpoint(tmp_path)
        monkeypatch.setattr(fingerprint, "opened", counted)
        checkpoint.fingerprint()
        assert [size for _, size in reads] == [2048] * 50  # the header was read on opening


def overwrite(tensor: Stored, place: int, data: bytes) -> None:
    with tensor.file.path.open("r+b") as file:
        file.seek(tensor.offset + place)
        file.write(data)


def test_identity_notices_a_replaced_and_a_touched_file(tmp_path: Path) -> None:
    write_sharded(
        tmp_path, {"a.safetensors": {"a": ("F32", [1])}, "b.safetensors": {"b": ("U8", [])}}
    )
    checkpoint = open_checkpoint(tmp_path)
    first = checkpoint.identity()
    assert [entry[0] for entry in first] == [str(file.path) for file in checkpoint.files]
    assert open_checkpoint(tmp_path).identity() == first
    os.utime(checkpoint.files[1].path, ns=(5, 5))
    assert checkpoint.identity() == first  # as the header was read
    second = open_checkpoint(tmp_path).identity()
    assert second != first
    replacement = tmp_path / "new"
    replacement.write_bytes(checkpoint.files[1].path.read_bytes())
    os.utime(replacement, ns=(5, 5))
    replacement.replace(checkpoint.files[1].path)
    assert open_checkpoint(tmp_path).identity() != second


def test_opening_imports_neither_torch_nor_the_hub_library(tmp_path: Path) -> None:
    write(tmp_path)
    code = (
        "import sys\n"
        "from mergeengine.checkpoints import open_checkpoint\n"
        "from mergeengine.checkpoints import aliases, config\n"
        f"open_checkpoint({str(tmp_path)!r}).fingerprint()\n"
        "heavy = {'torch', 'transformers', 'safetensors', 'huggingface_hub', 'numpy', 'fsspec'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
