"""Plans over models at URLs: the bytes of local ones, bounded, resumable, pinned, and discreet."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from remote_stand_in import StandInServer, Trouble
from safetensors.torch import save

import mergeengine
from mergeengine.compiler import transfer
from mergeengine.errors import CheckpointError, InputChangedError, ResourceError
from mergeengine.execution import native
from mergeengine.plan import load_plan
from mergeengine.workflow.locking import lock_plan
from mergeengine.workflow.prepare import prepare
from mergeengine.workflow.settings import Settings
from mergeengine.workflow.status import foresee

MiB = 1 << 20
ROLES = {"target": 0, "base": 1, "ft": 2}
LAYERS, SHAPE = 4, (800, 1400)  # tensors of more than one chunk


def content(seed: int) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"layers.{n}.w": torch.randn(SHAPE, generator=generator).to(torch.bfloat16)
        for n in range(LAYERS)
    }
    tensors["norm.w"] = torch.randn(800, generator=generator)
    return save(tensors)


WEIGHTS = {role: content(seed) for role, seed in ROLES.items()}
SMALL = {"config.json": b'{"model_type": "toy"}', "tokenizer.json": b"{}", "LICENSE": b"mine"}
NAME = "model.safetensors"


@pytest.fixture
def server(web: StandInServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandInServer:
    """Every role's model on the server and in a folder."""
    for role, weights in WEIGHTS.items():
        (tmp_path / role).mkdir()
        for name, data in {NAME: weights, **SMALL}.items():
            web.files[f"{role}/{name}"] = data
            (tmp_path / role / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    return web


@pytest.fixture
def small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "LARGEST", 1 << 19)


def plan_of(output: str, more: str = "", **models: str) -> Path:
    """A plan of local models, but for those given."""
    places = {role: models.get(role, f"./{role}") for role in ROLES}
    path = Path(f"{output}.yaml")
    path.write_text(
        f"version: 1\nname: toy\ntarget: {places['target']}\nsource_base: {places['base']}\n"
        f"source_ft: {places['ft']}\nscaling: 0.7\noutput: {{path: ./{output}}}\n{more}"
    )
    return path


def everywhere(web: StandInServer) -> dict[str, str]:
    return {role: f"{web.url}/{role}" for role in ROLES}


def weights_of(output: str) -> bytes:
    return (Path(output) / NAME).read_bytes()


MASKS = "masks:\n  - {match: '*', top: 0.3}\n"


@pytest.mark.parametrize(
    ("more", "workers"), [("", 1), ("", 3), (MASKS, 2)], ids=["flat", "3 workers", "reductions"]
)
@pytest.mark.usefixtures("small_spans")
def test_the_bytes_are_those_of_local_models(
    server: StandInServer, more: str, workers: int
) -> None:
    mergeengine.run(plan_of("local", more))
    everything = everywhere(server)
    for output, remote in {
        "all": everything,
        "deltas": {role: everything[role] for role in ("base", "ft")},
        "one": {"ft": everything["ft"]},
    }.items():
        result = mergeengine.run(plan_of(output, more, **remote), workers=workers)
        assert result.made
        assert weights_of(output) == weights_of("local")
        for name in SMALL:
            assert (Path(output) / name).read_bytes() == (Path("local") / name).read_bytes()
        assert not mergeengine.run(plan_of(output, more, **remote)).made
    assert not list(Path().glob("**/*.partial"))


def test_without_the_compiled_loop(server: StandInServer, monkeypatch: pytest.MonkeyPatch) -> None:
    mergeengine.run(plan_of("local"))
    monkeypatch.setattr(native, "library", lambda: None)
    result = mergeengine.run(plan_of("remote", **everywhere(server)))
    assert result.report["loop"] == "torch"
    assert weights_of("remote") == weights_of("local")


@pytest.mark.usefixtures("small_spans")
def test_every_byte_is_asked_for_once(server: StandInServer) -> None:
    """Those of tensors that are read; what a mask leaves out is not."""
    more = "masks:\n  - {layers: 1-2, scale: 0}\n"
    path = plan_of("out", more, **everywhere(server))
    status = foresee(load_plan(path), Settings())
    layer = 2 * SHAPE[0] * SHAPE[1]
    needed = 2 * layer + 4 * 800
    told = {f"{server.url}/{r}": needed + (2 * layer if r == "target" else 0) for r in ROLES}
    assert status.prepared.schedule.remote_bytes() == told
    assert status.document()["bytes"]["remote"] == told
    server.log.clear()
    result = mergeengine.run(path, workers=1)
    assert result.report["bytes"]["transferred"] == sum(told.values())
    for role in ROLES:
        headers_and_samples = 65536 + 5 * 2048
        extra = server.sent(f"{role}/{NAME}") - told[f"{server.url}/{role}"]
        assert 65536 <= extra <= headers_and_samples
    assert server.most_under_way <= transfer.MOST_REQUESTS
    # Spans smaller than a block are the worst case: now and then one is let go too early.
    again = mergeengine.run(path, workers=4, force=True)
    assert again.report["bytes"]["transferred"] <= 1.2 * sum(told.values())


def test_several_requests_are_under_way(server: StandInServer) -> None:
    path = plan_of("out", **everywhere(server))
    prepare(load_plan(path))
    server.pause, server.most_under_way = 0.02, 0
    mergeengine.run(path, workers=1)
    assert server.most_under_way >= 3


@pytest.mark.usefixtures("small_spans")
def test_troubles_on_the_way_do_not_show(server: StandInServer) -> None:
    mergeengine.run(plan_of("local"))
    path = plan_of("out", **everywhere(server))
    prepared = prepare(load_plan(path))
    many = [Trouble(500), Trouble(sent=1000), Trouble(429, {"Retry-After": "0"}), Trouble(sent=0)]
    for role in ROLES:
        server.troubles[f"{role}/{NAME}"] = list(many)
    assert mergeengine.run(load_plan(path), on_prepared=lambda _: None).made
    assert weights_of("out") == weights_of("local")
    assert prepared.schedule.transfers is not None


@pytest.mark.usefixtures("small_spans")
def test_a_run_that_broke_off_goes_on(server: StandInServer) -> None:
    """What was written is not asked for again."""
    mergeengine.run(plan_of("local"))
    path = plan_of("out", **everywhere(server))
    whole = len(WEIGHTS["ft"])
    server.log.clear()

    def fail_soon(phase: str, done: int, total: int) -> None:
        if phase == "merging" and done > total // 2:
            server.troubles[f"ft/{NAME}"] = [Trouble(503)] * 10_000

    with pytest.raises(
        CheckpointError, match="could not be read in 5 attempts: HTTP 503"
    ) as raised:
        mergeengine.run(path, workers=1, progress=fail_soon)
    assert f"{server.url}/ft/{NAME}: bytes " in str(raised.value)
    assert not Path("out").exists()
    server.troubles.clear()
    server.log.clear()
    result = mergeengine.run(path)
    assert result.report["bytes"]["kept_from_earlier_run"] >= result.report["bytes"]["written"] / 2
    assert server.sent(f"ft/{NAME}") < 0.8 * whole
    assert weights_of("out") == weights_of("local")


@pytest.mark.parametrize("ignores_conditions", [False, True])
@pytest.mark.usefixtures("small_spans")
def test_an_object_that_changes_on_the_way(server: StandInServer, ignores_conditions: bool) -> None:
    server.ignores_conditions = ignores_conditions
    path = plan_of("out", **everywhere(server))

    def change(phase: str, done: int, total: int) -> None:
        if phase == "merging" and done > total // 2:
            server.files[f"ft/{NAME}"] = WEIGHTS["base"]
            server.etags[f"ft/{NAME}"] = '"another"'

    with pytest.raises(InputChangedError, match=rf"{server.url}/ft/{NAME}.*: changed"):
        mergeengine.run(path, workers=1, progress=change)
    assert not Path("out").exists()
    # With what is there now it is another merge, begun anew.
    result = mergeengine.run(path)
    assert result.report["bytes"]["kept_from_earlier_run"] == 0
    mergeengine.run(plan_of("local", ft="./base"))
    assert weights_of("out") == weights_of("local")


def test_the_lock_and_what_changed(server: StandInServer) -> None:
    path = plan_of("out", **everywhere(server))
    assert lock_plan(load_plan(path), Settings()).written
    models = json.loads(path.with_suffix(".lock").read_text())["models"]
    assert set(models) == set(everywhere(server).values())
    assert all(content.startswith("xxh3:") for content in models.values())
    assert mergeengine.run(path, locked=True).made
    server.etags[f"ft/{NAME}"] = '"another"'
    with pytest.raises(mergeengine.VerificationError, match=rf"{server.url}/ft: xxh3:.*, now xxh3"):
        mergeengine.run(path, locked=True)


def test_a_signature_reaches_the_server_alone(
    server: StandInServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.secret = "sig=GEHEIM&expires=5"
    monkeypatch.setenv("SIGNATURE", server.secret)
    signed = {role: f"{server.url}/{role}/{NAME}?${{env:SIGNATURE}}" for role in ("base", "ft")}
    path = plan_of("out", **signed)
    result = mergeengine.run(path)
    assert result.made
    written = [p for p in Path().rglob("*") if p.is_file() and p.suffix != ".safetensors"]
    assert {p.name for p in written} >= {"mergeengine.json", "README.md", "out.lock"}
    for file in written:
        assert b"GEHEIM" not in file.read_bytes(), file
    assert f"{server.url}/ft/{NAME}?..." in Path("out.lock").read_text()
    status = foresee(load_plan(path), Settings())
    assert "GEHEIM" not in repr((result, status.document(), *capfd.readouterr()))
    # Signed anew it is the same plan of the same models.
    server.secret = "sig=NEW"
    monkeypatch.setenv("SIGNATURE", server.secret)
    assert not mergeengine.run(path).made


def test_two_urls_that_only_their_queries_tell_apart(server: StandInServer) -> None:
    url = f"{server.url}/ft/{NAME}"
    path = plan_of("out", base=f"{url}?version=1", ft=f"{url}?version=2")
    with pytest.raises(CheckpointError, match=r"out.yaml:5:12: .*\?\.\.\. differs from .* only in"):
        mergeengine.run(path)


def test_a_mask_from_a_file_at_a_url(server: StandInServer) -> None:
    data = save({f"layers.{n}.w": torch.full(SHAPE, n % 2, dtype=torch.bool) for n in range(4)})
    Path("mask.safetensors").write_bytes(data)
    server.files["mask.safetensors"] = data
    for output, place in (("local", "mask.safetensors"), ("out", f"{server.url}/mask.safetensors")):
        more = f"masks:\n  - {{match: 'layers.*', file: '{place}'}}\n"
        assert mergeengine.run(plan_of(output, more)).made
    assert weights_of("out") == weights_of("local")
    assert server.sent("mask.safetensors") > len(data) - 1000


def test_models_in_the_memory_of_this_process(server: StandInServer) -> None:
    store: Any = fsspec.filesystem("memory")
    for name, data in server.files.items():
        store.pipe(f"/{name}", data)
    mergeengine.run(plan_of("local"))
    result = mergeengine.run(plan_of("out", **{role: f"memory://{role}" for role in ROLES}))
    assert result.made
    assert weights_of("out") == weights_of("local")
    store.store.clear()


def test_lazy_checkpoints(server: StandInServer) -> None:
    mergeengine.run(plan_of("local"))
    target, base, ft = (mergeengine.open_checkpoint(f"{server.url}/{role}") for role in ROLES)
    merged = target + 0.7 * (ft - base)
    blocks: dict[str, Any] = dict(merged.tensors())
    merged.save("out")
    assert weights_of("out") == weights_of("local")
    assert len(blocks) == LAYERS + 1


def test_too_little_memory_is_told_before_anything_is_sent(server: StandInServer) -> None:
    path = plan_of("out", **everywhere(server))
    server.log.clear()
    with pytest.raises(ResourceError, match="raise --memory"):
        mergeengine.run(path, memory="30MiB")
    assert sum(size for *_, size in server.log) < 3 * 80_000


@pytest.fixture(autouse=True)
def _memory_is_empty() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").store.clear()
