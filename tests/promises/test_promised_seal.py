"""What is sealed speaks of no machine, and tells every change."""

import getpass
import json
import os
import platform
import random
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lineage import Lineage, make_lineage, write_plan

from mergeengine.errors import MergeEngineError
from mergeengine.workflow.existing import verify
from mergeengine.workflow.run import run

SHAPES = {
    "model.embed_tokens.weight": (40, 16),
    "model.layers.0.mlp.weight": (64, 16),
    "model.layers.1.mlp.weight": (64, 16),
    "model.norm.weight": (16,),
}


@pytest.fixture(scope="module")
def lineage(tmp_path_factory: pytest.TempPathFactory) -> Lineage:
    lineage = make_lineage(
        tmp_path_factory.mktemp("some-place"), SHAPES, output={"path": "./out", "shard_size": "3KB"}
    )
    (lineage.folder / "ft" / "generation_config.json").write_text('{"eos_token_id": 2}')
    (lineage.folder / "ft" / "tokenizer.json").write_text("{}")
    (lineage.folder / "target" / "LICENSE").write_text("as you like")
    run(lineage.plan, device="cpu")
    return lineage


def _texts(lineage: Lineage) -> dict[str, bytes]:
    files = [path for path in lineage.out.rglob("*") if path.is_file()]
    return {path.name: path.read_bytes() for path in [*files, lineage.folder / "plan.lock"]}


def test_nothing_of_this_machine(lineage: Lineage) -> None:
    forbidden = {
        str(lineage.folder),
        lineage.folder.name,
        str(Path.home()),
        str(Path.cwd()),
        socket.gethostname(),
        getpass.getuser(),
        platform.release(),
        time.strftime("%Y-%m-%d"),
        str(int(time.time()) // 1000),
    }
    texts = _texts(lineage)
    assert {"mergeengine.json", "README.md", "plan.lock", "config.json"} <= texts.keys()
    for name, text in texts.items():
        if not name.endswith(".safetensors"):
            for word in forbidden:
                whole = re.compile(rf"(?<!\w){re.escape(word)}".encode())
                assert not whole.search(text), (name, word)


def test_no_key_speaks_of_time_or_machine(lineage: Lineage) -> None:
    document = json.loads((lineage.out / "mergeengine.json").read_bytes())
    words = re.findall(r'"(\w+)":', json.dumps(document))
    suspicious = re.compile("time|date|host|user|path|seconds|memory|workers|device", re.IGNORECASE)
    assert [word for word in words if suspicious.search(word)] == []


def test_documents_are_sorted_and_end_in_a_newline(lineage: Lineage) -> None:
    for path in (lineage.out / "mergeengine.json", lineage.folder / "plan.lock"):
        text = path.read_text()
        document = json.loads(text)
        assert text == json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def test_an_absolute_reference_stays_where_it_was_written(lineage: Lineage, tmp_path: Path) -> None:
    """Of the weights and config nothing depends on how an input is referred to."""
    plan = write_plan(
        tmp_path,
        target=str(lineage.folder / "target"),
        source_base=str(lineage.folder / "base"),
        source_ft=str(lineage.folder / "ft"),
        output={"path": "./out", "shard_size": "3KB"},
    )
    run(plan, device="cpu")
    for path in lineage.out.iterdir():
        if path.name not in ("mergeengine.json", "README.md"):
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


# --- verify --------------------------------------------------------------------------------


@pytest.fixture
def sealed(lineage: Lineage, tmp_path: Path) -> Path:
    run(lineage.plan, output=tmp_path / "out", device="cpu")
    assert verify(tmp_path / "out") == []
    return tmp_path / "out"


def _flip(path: Path, position: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ (1 << bit)]))


def _found(folder: Path) -> bool:
    """Whether ``verify`` tells of a difference; an unreadable file may be told by an error."""
    try:
        return bool(verify(folder))
    except MergeEngineError:
        return True


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _header_end(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def test_every_flipped_bit_of_the_data_is_found(sealed: Path) -> None:
    chance = random.Random(1)
    for _ in range(150):
        path = chance.choice(_shards(sealed))
        position = chance.randrange(_header_end(path), path.stat().st_size)
        bit = chance.randrange(8)
        _flip(path, position, bit)
        assert _found(sealed), (path.name, position, bit)
        _flip(path, position, bit)
    assert verify(sealed) == []


def test_every_flipped_bit_of_a_header_is_found(sealed: Path) -> None:
    missed = []
    path = _shards(sealed)[0]
    end = _header_end(path)
    for position in range(end):
        bit = position % 8
        _flip(path, position, bit)
        if not _found(sealed):
            missed.append((position, bit))
        _flip(path, position, bit)
    assert missed == []
    assert verify(sealed) == []


def test_every_flipped_bit_of_the_companions_is_found(sealed: Path) -> None:
    chance = random.Random(3)
    names = {path.name for path in sealed.iterdir()} - {p.name for p in _shards(sealed)}
    names.remove("mergeengine.json")
    assert len(names) >= 5
    for name in sorted(names):
        for _ in range(15):
            position, bit = chance.randrange((sealed / name).stat().st_size), chance.randrange(8)
            _flip(sealed / name, position, bit)
            assert _found(sealed), (name, position, bit)
            _flip(sealed / name, position, bit)
    assert verify(sealed) == []


def _change_header(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    assert len(old) == len(new)
    path.write_bytes(data.replace(old, new, 1))


def _swap_tensors(folder: Path) -> None:
    """Two tensors of one shape change names."""
    first, second = b"model.layers.0.mlp.weight", b"model.layers.1.mlp.weight"
    for path in _shards(folder):
        data = path.read_bytes()
        path.write_bytes(
            data.replace(first, b"\0").replace(second, first).replace(b"\0", second)
            if path.suffix == ".safetensors" and b"\0" not in data[8 : _header_end(path)]
            else data
        )


TAMPERING: dict[str, Callable[[Path], object]] = {
    "dtype": lambda folder: _change_header(_shards(folder)[0], b'"BF16"', b'"F16" '),
    "shape": lambda folder: _change_header(_shards(folder)[0], b"[40,16]", b"[16,40]"),
    "metadata": lambda folder: _change_header(_shards(folder)[0], b'"pt"', b'"tf"'),
    "an added file": lambda folder: (folder / "tokenizer.model").write_text("x"),
    "an added folder of files": lambda folder: (
        (folder / "deep").mkdir(),
        (folder / "deep" / "modeling.py").write_text("x"),
    ),
    "an added hidden file": lambda folder: (folder / ".hidden").write_text("x"),
    "an added link": lambda folder: (folder / "link").symlink_to("/nowhere"),
    "a removed config": lambda folder: (folder / "config.json").unlink(),
    "a removed index": lambda folder: (folder / "model.safetensors.index.json").unlink(),
    "a removed shard": lambda folder: _shards(folder)[0].unlink(),
    "a removed card": lambda folder: (folder / "README.md").unlink(),
    "an emptied file": lambda folder: (folder / "tokenizer.json").write_text(""),
    "a shard cut off": lambda folder: os.truncate(_shards(folder)[-1], 100),
    "a shard prolonged": lambda folder: os.truncate(_shards(folder)[-1], 100_000),
    "a single file beside the shards": lambda folder: (folder / "model.safetensors").write_bytes(
        _shards(folder)[0].read_bytes()
    ),
    "shards exchanged": lambda folder: (
        _shards(folder)[0].rename(folder / "x"),
        _shards(folder)[0].rename(folder / "model-00001-of-00003.safetensors"),
        (folder / "x").rename(folder / "model-00002-of-00003.safetensors"),
    ),
    "manifest without a tensor": lambda folder: (folder / "mergeengine.json").write_text(
        (folder / "mergeengine.json").read_text().replace("model.norm.weight", "model.n0rm.weight")
    ),
    "no manifest": lambda folder: (folder / "mergeengine.json").unlink(),
}


@pytest.mark.parametrize("tampering", TAMPERING)
def test_tampering_is_found(tampering: str, sealed: Path) -> None:
    TAMPERING[tampering](sealed)
    assert _found(sealed)


def test_every_difference_is_told_and_not_only_the_first(sealed: Path) -> None:
    (sealed / "config.json").unlink()
    (sealed / "more.txt").write_text("x")
    for path in _shards(sealed):
        _flip(path, path.stat().st_size - 1, 0)
    text = "\n".join(verify(sealed))
    assert "config.json" in text
    assert "more.txt" in text
    assert len(re.findall("values of .* differ", text)) == len(_shards(sealed))
