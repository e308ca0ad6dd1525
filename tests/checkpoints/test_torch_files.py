"""Files that torch wrote, read without torch, against what torch itself reads."""

import argparse
import datetime
import io
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from mergeengine.checkpoints import open_checkpoint
from mergeengine.errors import CheckpointError
from mergeengine.lazy.stored import Stored
from mergeengine.workflow.lazy_checkpoint import open_lazily

FORMATS = {
    "zip": {},
    "zip, protocol 4": {"pickle_protocol": 4},
    "zip, protocol 5": {"pickle_protocol": 5},
    "legacy": {"_use_new_zipfile_serialization": False},
    "legacy, protocol 1": {"_use_new_zipfile_serialization": False, "pickle_protocol": 1},
    "legacy, protocol 4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
}
both = pytest.mark.parametrize("form", ["zip", "legacy"])
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    torch.uint16, torch.uint32, torch.uint64,
]  # fmt: skip


def saved(path: Path, content: object, form: str = "zip") -> Path:
    torch.save(content, path, **FORMATS[form])
    return path


def read(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, streamed."""
    return dict(open_lazily(path).tensors())


def bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype)
    flat.view(tensor.shape).copy_(tensor.detach())
    return tensor.dtype, tensor.shape, flat.view(torch.uint8).numpy().tobytes()


def same(found: dict[str, Tensor], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert bits(found[name]) == bits(tensor), name


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message


def some(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) * 100).to(dtype)


@pytest.mark.parametrize("form", FORMATS)
def test_every_dtype_is_what_torch_wrote(form: str, tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        content[f"{name}.matrix"] = some(5, 7, dtype=dtype)
        content[f"{name}.transposed"] = some(6, 4, dtype=dtype).t()
        content[f"{name}.scalar"] = some(1, dtype=dtype)[0].clone()
        content[f"{name}.empty"] = torch.empty(0, 3, dtype=dtype)
    # torch's own reading, safe or not, does not know all dtypes in all of these.
    same(read(saved(tmp_path / "m.pt", content, form)), content)


WIDE = some(6, 8, 10)
LAYOUTS: dict[str, Tensor] = {
    "rows": WIDE[2:4],
    "columns": WIDE[:, :, 3:7],
    "columns at the end": WIDE[:, 5:, 9:],
    "rows of columns": WIDE[1:5, 2:3, 4:],
    "one element": WIDE[3, 4, 5],
    "a transposed part": WIDE[1:5, :, 2:5].transpose(0, 2),
    "every third": WIDE[::3, 1::2, ::4],
    "every second, transposed": WIDE[:, ::2, 1::3].permute(2, 0, 1),
    "every second of a row": some(101)[::2],
    "the diagonal": some(9, 9).diagonal(),
    "the last of each": WIDE[..., -1],
    "expanded": some(1, 5).expand(4, 5),
    "an expanded number": torch.tensor(3.5).expand(2, 3),
    "expanded and transposed": some(5, 1, 2).expand(5, 3, 2).permute(2, 1, 0),
    "an expanded part": WIDE[2:4, :1, 3:5].expand(2, 7, 2),
    "expanded in front": some(7).expand(3, 7),
    "strides of single dimensions": some(6).as_strided((2, 1, 3), (3, 77, 1)),
    "no multiple": some(17).as_strided((2, 3), (8, 1), 6),
    "no multiple, in columns": some(29).as_strided((3, 2), (1, 10), 7),
    "none of many": WIDE[:, 3:3],
    "none, far behind": some(4).as_strided((0, 5), (1, 1), 3),
    "channels last": some(2, 3, 4, 5).to(memory_format=torch.channels_last),
}  # fmt: skip


@both
def test_strides_are_honoured(form: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", LAYOUTS, form)
    same(read(path), torch.load(path))


def test_what_is_contiguous_is_stored_as_it_is(tmp_path: Path) -> None:
    content = {"rows": WIDE[2:4], "single": some(3, 1, 4)[:, :, :], "wide": WIDE}
    tensors = open_checkpoint(saved(tmp_path / "m.pt", content)).tensors
    assert all(isinstance(tensor, Stored) for tensor in tensors.values())


@st.composite
def views(draw: st.DrawFn) -> Tensor:
    """A view of a small storage by slicing, transposing and expanding."""
    shape = draw(st.lists(st.integers(1, 6), min_size=0, max_size=4))
    tensor = torch.arange(torch.Size(shape).numel(), dtype=torch.int16).view(shape)
    for _ in range(draw(st.integers(0, 4))):
        dims = tensor.ndim
        if not dims:
            break
        d = draw(st.integers(0, dims - 1))
        kind = draw(st.sampled_from(["slice", "permute", "select", "expand", "unsqueeze"]))
        if kind == "slice":
            start = draw(st.integers(0, tensor.shape[d]))
            stop = draw(st.integers(start, tensor.shape[d]))
            step = draw(st.integers(1, 3))
            tensor = tensor[(slice(None),) * d + (slice(start, stop, step),)]
        elif kind == "permute":
            tensor = tensor.permute(draw(st.permutations(range(dims))))
        elif kind == "select" and tensor.shape[d]:
            tensor = tensor.select(d, draw(st.integers(0, tensor.shape[d] - 1)))
        elif kind == "expand" and tensor.shape[d] == 1:
            tensor = tensor.expand(*(3 if e == d else -1 for e in range(dims)))
        elif kind == "unsqueeze" and dims < 5:
            tensor = tensor.unsqueeze(d)
    return tensor


@settings(max_examples=40, deadline=None)
@given(st.lists(views(), min_size=1, max_size=12), st.sampled_from(["zip", "legacy"]))
def test_any_view_is_what_torch_reads(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[Tensor], form: str
) -> None:
    content = {f"t{number}": tensor for number, tensor in enumerate(tensors)}
    path = saved(tmp_path_factory.mktemp("views") / "m.pt", content, form)
    same(read(path), torch.load(path))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 12)), min_size=1, max_size=3),
    st.integers(0, 9),
    st.integers(0, 20),
)
def test_any_strides_are_what_torch_reads_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, dims: list[tuple[int, int]], offset: int, more: int
) -> None:
    span = sum((n - 1) * step for n, step in dims)
    base = torch.arange(offset + span + 1 + more, dtype=torch.int32)
    tensor = base.as_strided([n for n, _ in dims], [step for _, step in dims], offset)
    path = saved(tmp_path_factory.mktemp("strides") / "m.pt", {"w": tensor})
    try:
        found = read(path)
    except CheckpointError as error:
        refusal = str(error)
        assert "tensor 'w' has strides by which its elements overlap" in refusal
        moving = sorted((step, n) for n, step in dims if n > 1 and step)
        spans = [sum((m - 1) * s for s, m in moving[:k]) for k in range(len(moving))]
        nested = all(span < step for span, (step, _) in zip(spans, moving, strict=True))
        divides = all(b % a == 0 for (a, _), (b, _) in pairwise(moving))
        assert not (nested and divides), "an ordinary view"
    else:
        same(found, {"w": tensor})


def test_elements_that_overlap_are_refused_by_name(tmp_path: Path) -> None:
    windows = some(20).unfold(0, 4, 1)
    message = refused(saved(tmp_path / "m.pt", {"w": windows}))
    assert message.endswith(
        "tensor 'w' has strides by which its elements overlap: save it with contiguous()"
    )


@both
def test_tensors_that_share_a_storage_are_read_from_it(form: str, tmp_path: Path) -> None:
    weight = some(8, 6)
    content = {"a": weight, "tied": weight, "transposed": weight.t(), "part": weight[2:4]}
    path = saved(tmp_path / "m.bin", content, form)
    same(read(path), content)
    tensors = open_checkpoint(path).tensors
    a, tied = tensors["a"], tensors["tied"]
    assert isinstance(a, Stored)
    assert isinstance(tied, Stored)
    assert a.offset == tied.offset


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.rest = nn.Sequential(nn.Conv1d(4, 2, 3), nn.BatchNorm1d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.first(x).transpose(1, 2))  # type: ignore[no-any-return]


CHECKPOINTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "lightning": lambda w: {"state_dict": w, "epoch": 3, "optimizer_states": [adam()], "loops": {}},
    "a training loop's": lambda w: {"model": w, "optimizer": adam(), "step": torch.tensor(7)},
    "with an average": lambda w: {"model": w, "model_ema": w, "args": None, "lr": 0.1},
    "twice inside": lambda w: {"checkpoint": {"model_state_dict": w}, "epoch": 1},
    "of an unusual key": lambda w: {"network": w, "time": 3.5, "names": ["a"]},
    "with other things": lambda w: {**w, "epoch": 3, "note": "x", "nothing": None, "list": [1, 2]},
    "with numbers of numpy": lambda w: {"model": w, "best": np.float64(0.5)},
    "with arguments": lambda w: {"model": w, "args": argparse.Namespace(lr=0.1)},
    "a set, bytes and a complex": lambda w: {"model": w, "x": {1, 2}, "y": b"a", "z": 1j},
}


def adam() -> dict[str, Any]:
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    net(some(2, 5, 6)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@both
@pytest.mark.parametrize("case", CHECKPOINTS)
def test_the_state_dict_in_a_training_checkpoint_is_found(
    case: str, form: str, tmp_path: Path
) -> None:
    weights = OrderedDict(Net().state_dict())
    path = saved(tmp_path / "m.ckpt", CHECKPOINTS[case](weights), form)
    same(read(path), weights)
    assert bool(open_checkpoint(path).notes) == (case != "with other things")


def test_where_the_weights_were_found_is_said(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.ckpt", {"checkpoint": {"state_dict": {"w": some(2)}}})
    assert open_checkpoint(path).notes == (
        "m.ckpt: the weights are those in ['checkpoint']['state_dict']",
    )


def test_parameters_with_attributes_are_tensors(tmp_path: Path) -> None:
    tagged = nn.Parameter(some(3))
    tagged.tag = "x"  # type: ignore[attr-defined]
    plain = some(4)
    plain.tag = "y"  # type: ignore[attr-defined]
    content = {"plain": nn.Parameter(some(2, 3).t()), "tagged": tagged, "attributed": plain}
    path = saved(tmp_path / "m.pt", content)
    same(read(path), content)


@pytest.mark.parametrize("size", [3, 100_000])
def test_a_part_of_a_storage_in_a_legacy_file(size: int, tmp_path: Path) -> None:
    storage = some(size).untyped_storage()
    whole = torch.tensor([], dtype=torch.float32).set_(storage)
    path = saved(tmp_path / "m.pt", {"whole": whole, "part": whole[1:3]}, "legacy")
    same(read(path), torch.load(path))


def test_alignment_and_checksums_are_torchs_own_affair(tmp_path: Path) -> None:
    content = {"a": some(3), "b": some(1000)}
    torch.serialization.set_crc32_options(False)
    try:
        same(read(saved(tmp_path / "m.pt", content)), content)
    finally:
        torch.serialization.set_crc32_options(True)


def test_a_repacked_archive_is_read_where_its_records_lie(tmp_path: Path) -> None:
    content = {"a": some(3), "b": some(50).view(5, 10).t()}
    original = saved(tmp_path / "m.pt", content)
    path = tmp_path / "again.pt"
    with zipfile.ZipFile(original) as old, zipfile.ZipFile(path, "w") as new:
        for number, name in enumerate(reversed(old.namelist())):
            info = zipfile.ZipInfo(name)
            info.extra = b"\x00\x11\x04\x00abcd" * number
            new.writestr(info, old.read(name))
        new.comment = b"a comment"
    same(read(path), content)


def test_zip64_archives_are_read(tmp_path: Path) -> None:
    content = {"a": some(3), "b": some(500)}
    original = saved(tmp_path / "m.pt", content)
    path = tmp_path / "again.pt"
    with zipfile.ZipFile(original) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            with new.open(name, "w", force_zip64=True) as record:
                record.write(old.read(name))
    same(read(path), content)


def test_torchscript_modules_are_read_by_parameters_and_buffers(tmp_path: Path) -> None:
    net = Net().eval()
    path = tmp_path / "m.jit"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(net).save(str(path))
    same(read(path), net.state_dict())


class Quantised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def quantised() -> Tensor:
    return torch.quantize_per_tensor(some(4), 0.1, 3, torch.qint8)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "quantised": (lambda: {"w": quantised()}, "tensor 'w' is quantised: use the unquantised"),
    "sparse": (lambda: {"w": some(3, 3).to_sparse()}, "tensor 'w' is sparse: save it dense"),
    "sparse rows": (lambda: {"w": some(3, 3).to_sparse_csr()}, "tensor 'w' is sparse"),
    "meta": (lambda: {"w": torch.empty(3, device="meta")}, "tensor 'w' is a meta tensor"),
    "conjugate": (lambda: {"w": torch.tensor([1j, 2j]).conj()}, "conjugate or negative bit"),
    "complex128": (
        lambda: {"w": torch.zeros(2, dtype=torch.complex128)},
        "'w' has the dtype complex128",
    ),
    "another 8 bits": (
        lambda: {"w": torch.zeros(2).to(torch.float8_e5m2fnuz)},
        "dtype float8_e5m2fnuz",
    ),
    "a whole model": (lambda: Net(), "'test_torch_files.Net', which would run code"),
    "a module of torch": (lambda: nn.Linear(2, 2), "a whole pickled model takes its code to read"),
    "a single tensor": (lambda: some(3), "a single tensor, which has no name"),
    "a list": (lambda: [some(3)], "found a list"),
    "no tensor": (
        lambda: {"a": 1, "b": "x"},
        "there are no weights in it: expected a dict of names",
    ),
    "an optimizer": (adam, "there are no weights in it"),
    "two models": (
        lambda: {"generator": {"w": some(2)}, "critic": {"w": some(2)}},
        "not clear which of its dicts has the model's weights: 'generator', 'critic'",
    ),
    "two usual keys": (
        lambda: {"model": {"w": some(2)}, "state_dict": {"w": some(2)}},
        "'state_dict', 'model'",
    ),
    "tensors and a dict of them": (
        lambda: {"w": some(2), "head": {"w": some(2)}},
        "'tensors beside them', 'head'",
    ),
    "a name that cannot be printed": (lambda: {"w\n": some(2)}, "is not a usable tensor name"),
    "an empty name": (lambda: {"": some(2)}, "is not a usable tensor name"),
    "a function": (lambda: {"w": some(2), "f": len}, "builtin__.len', which would run code"),
    "a date": (
        lambda: {"w": some(2), "at": datetime.date(2020, 1, 1)},
        "'datetime.date', which would run code and is not needed for weights: if you trust",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged_is_refused_with_the_way_out(case: str, tmp_path: Path) -> None:
    make, reason = REFUSED[case]
    for form in ("zip", "legacy"):
        try:
            path = saved(tmp_path / f"{form}.pt", make(), form)
        except (RuntimeError, AttributeError):  # torch cannot write it in this format
            assert form == "legacy"
            continue
        assert reason in refused(path)


def test_refused_tensors_that_are_no_weights_do_no_harm(tmp_path: Path) -> None:
    content = {"model": {"w": some(2)}, "extra": {"meta": torch.empty(2, device="meta")}}
    assert read(saved(tmp_path / "m.pt", content)).keys() == {"w"}


def test_opening_imports_no_torch(tmp_path: Path) -> None:
    paths = [
        saved(tmp_path / f"{form}.pt", {"w": some(3, 4).t()}, form) for form in ("zip", "legacy")
    ]
    script = (
        "import sys\nfrom mergeengine.checkpoints import open_checkpoint\n"
        f"for path in {[str(path) for path in paths]}:\n"
        "    open_checkpoint(path).fingerprint()\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_fingerprint_is_of_names_strides_and_data(tmp_path: Path) -> None:
    def fingerprint(content: dict[str, Tensor]) -> str:
        return open_checkpoint(saved(tmp_path / "m.pt", content)).fingerprint()

    square = some(4, 4)
    prints = [
        fingerprint({"w": square}),
        fingerprint({"v": square}),
        fingerprint({"w": square.t()}),
        fingerprint({"w": square + 1.0}),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint({"w": square}) == prints[0]


def test_bytes_of_torch_survive_a_round_through_memory(tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save({"w": some(3)}, stream)
    path = tmp_path / "m.pth"
    path.write_bytes(stream.getvalue())
    same(read(path), {"w": some(3)})
