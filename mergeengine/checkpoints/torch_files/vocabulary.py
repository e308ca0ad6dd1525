"""The names that a pickle of torch may use, and the records of tensors that they make.

A state dict needs a handful: ordered dicts, torch's functions that put a tensor together, and its
types of storages. Whatever else a pickle names would be run by `pickle`; it is refused here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import NoReturn

from mergeengine.checkpoints.documents import shown
from mergeengine.checkpoints.torch_files.unpickler import Class, Function, Instance, Opaque
from mergeengine.errors import CheckpointError

_MAX_DIMS = 64
_MAX_SIZE = 2**63 - 1

_STORAGES = {  # torch's classes of storages: dtype and bytes of an element
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
    "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
    "QInt8Storage": ("qint8", 1),
    "QUInt8Storage": ("quint8", 1),
    "QInt32Storage": ("qint32", 4),
    "QUInt4x2Storage": ("quint4x2", 1),
    "QUInt2x4Storage": ("quint2x4", 1),
    "UntypedStorage": ("uint8", 1),
}
_SCHEMES = ("affine", "symmetric", "affine_float_qparams")
# Harmless things that lie beside weights in training checkpoints: named, never made.
_INERT = {
    ("argparse", "Namespace"),
    ("torch", "device"),
    *(("torch", f"per_{of}_{kind}") for of in ("tensor", "channel") for kind in _SCHEMES),
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *(
        (module, name)
        for module in ("builtins", "__builtin__")
        for name in ("set", "frozenset", "bytearray", "complex", "slice", "range")
    ),
}
_XLA = "was saved from a device without storages (XLA): move the model to the CPU before saving it"
_SPARSE = "is sparse: save it dense (tensor.to_dense())"
_META = "is a meta tensor, which has no values: save the model after its weights are loaded"
_REFUSED_TENSORS = {
    "_rebuild_qtensor": "is quantised: use the unquantised checkpoint that it was made from",
    "_rebuild_sparse_tensor": _SPARSE,
    "_rebuild_sparse_csr_tensor": _SPARSE,
    "_rebuild_nested_tensor": "is a nested tensor: save its parts as ordinary tensors",
    "_rebuild_meta_tensor_no_storage": _META,
    "_rebuild_wrapper_subclass": "is a tensor subclass: save ordinary tensors",
    "_rebuild_device_tensor_from_numpy": _XLA,
    "_rebuild_device_tensor_from_cpu_tensor": _XLA,
    "_rebuild_xla_tensor": _XLA,
}
_TORCHSCRIPT_LISTS = (
    "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag",
)  # fmt: skip
_DTYPES = {
    *(dtype for dtype, _ in _STORAGES.values()),
    "uint16", "uint32", "uint64", "complex32", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2",
    *(f"uint{n}" for n in range(1, 8)), *(f"int{n}" for n in range(1, 8)),
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
    "float4_e2m1fn_x2", "half", "float", "double", "long", "int", "short",
}  # fmt: skip
_SYNONYMS = {
    "half": "float16", "float": "float32", "double": "float64",
    "long": "int64", "int": "int32", "short": "int16",
}  # fmt: skip
_SAVE_STATE_DICT = "torch.save(model.state_dict(), ...)"


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage as a pickle claims it, or a part of one: sizes are in elements of `itemsize`."""

    key: str
    dtype: str
    itemsize: int
    numel: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class TorchTensor:
    """A tensor as torch has it: elements of a storage at offset + Σ index · stride."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RefusedTensor:
    """A tensor that cannot be merged; `why` follows its name in a sentence."""

    why: str


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str
    itemsize: int


@dataclass(frozen=True, slots=True)
class _TorchDType:
    name: str


class TorchVocabulary:
    """The vocabulary of one file; `storages` are all that its pickle has named, by key."""

    def __init__(self, label: str, *, torchscript: bool = False) -> None:
        self.storages: dict[str, Storage] = {}
        self._label = label
        self._torchscript = torchscript

    def find(self, module: str, name: str) -> object:
        """What a global stands for; CheckpointError for one that is not needed for weights."""
        if found := _TABLE.get((module, name)):
            return found
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _StorageType(*_STORAGES[name])
        if module == "torch" and name in _DTYPES:
            return _TorchDType(_SYNONYMS.get(name, name))
        if module == "torch._utils" and name in _REFUSED_TENSORS:
            why = _REFUSED_TENSORS[name]
            return Function(lambda _: RefusedTensor(why))
        if (module, name) in _INERT:
            return Function(lambda _: Opaque()) if module != "argparse" else Class(module, name)
        if self._torchscript and module.startswith("__torch__"):
            return Class(module, name)
        raise CheckpointError(
            f"{self._label}: the pickle in it names {shown(f'{module}.{name}')}, which would run "
            f"code and is not needed for weights: {_way_out(module)}"
        )

    def persistent(self, identity: object) -> object:
        """The storage of a persistent id: ("storage", type, key, location, numel[, view])."""
        if type(identity) is not tuple or not identity:
            raise ValueError("a persistent id that is no tuple")
        if identity[0] == "module":  # the source code of a class, beside its pickled object
            raise CheckpointError(
                f"{self._label}: it holds a whole pickled model, which takes its code to read: "
                f"save its weights alone: {_SAVE_STATE_DICT}"
            )
        if len(identity) not in (5, 6) or identity[0] != "storage":
            raise ValueError("a persistent id of an unknown kind")
        _, kind, key, location, numel, *rest = identity
        if not isinstance(kind, _StorageType) or type(key) is not str or not _is_size(numel):
            raise ValueError("a storage without type, key or size")
        if location == "meta":
            return RefusedTensor(_META)
        start, length = 0, numel
        if rest and rest[0] is not None:
            if type(rest[0]) is not tuple:
                raise ValueError("a part of a storage that is no tuple")
            _, start, length = rest[0]
            if not _is_size(start) or not _is_size(length) or start + length > numel:
                raise ValueError("a part that is outside its storage")
        storage = Storage(key, kind.dtype, kind.itemsize, numel, start, length)
        known = self.storages.setdefault(key, storage)
        if known.numel * known.itemsize != numel * kind.itemsize:
            raise ValueError("a storage of two sizes")
        return storage


def _is_size(number: object) -> bool:
    return type(number) is int and 0 <= number <= _MAX_SIZE


def _way_out(module: str) -> str:
    root = module.partition(".")[0]
    if root in ("torchao", "bitsandbytes", "quanto"):
        return "it is a quantised tensor: use the unquantised checkpoint that it was made from"
    if module.startswith("torch.distributed"):
        return "it is a part of a distributed tensor: gather the whole model before it is saved"
    if module.startswith("torch.nn") or root in ("__main__", "transformers"):
        return f"a whole pickled model takes its code to read: save its weights: {_SAVE_STATE_DICT}"
    return (
        "if you trust where it comes from, load it with torch and save its weights alone: "
        f"{_SAVE_STATE_DICT}"
    )


def _numbers(value: object) -> tuple[int, ...]:
    """A shape or strides."""
    if type(value) not in (tuple, list) or len(value) > _MAX_DIMS:  # type: ignore[arg-type]
        raise ValueError("a shape that is no tuple of a few numbers")
    if not all(map(_is_size, value)):  # type: ignore[call-overload]
        raise ValueError("a shape or stride that is no number from 0 on")
    return tuple(value)  # type: ignore[arg-type]


def _tensor(arguments: tuple[object, ...]) -> object:
    """``_rebuild_tensor`` and ``_v2``: storage, offset, size, stride, ..., metadata."""
    storage, offset, shape, strides, *rest = arguments
    metadata = rest[2] if len(rest) > 2 else None
    return _made(storage, None, offset, shape, strides, metadata)


def _tensor_v3(arguments: tuple[object, ...]) -> object:
    """``_rebuild_tensor_v3``: as ``_v2``, and the dtype, of which the storage knows nothing."""
    storage, offset, shape, strides, _, _, dtype, *rest = arguments
    if not isinstance(dtype, _TorchDType):
        raise ValueError("a tensor without a dtype")
    return _made(storage, dtype.name, offset, shape, strides, rest[0] if rest else None)


def _made(
    storage: object, dtype: str | None, offset: object, shape: object, strides: object, bits: object
) -> object:
    if isinstance(storage, RefusedTensor):
        return storage
    if not isinstance(storage, Storage) or not _is_size(offset):
        raise ValueError("a tensor without a storage or an offset")
    assert type(offset) is int
    sizes, steps = _numbers(shape), _numbers(strides)
    if len(sizes) != len(steps):
        raise ValueError("a tensor with more sizes than strides, or fewer")
    if prod(sizes) > _MAX_SIZE:
        raise ValueError("a tensor of more elements than there can be")
    if bits:
        return RefusedTensor("has its conjugate or negative bit set: save it with resolve_neg()")
    return TorchTensor(storage, dtype or storage.dtype, offset, sizes, steps)


def _parameter(arguments: tuple[object, ...]) -> object:
    if not isinstance(arguments[0], TorchTensor | RefusedTensor):
        raise ValueError("a parameter that is no tensor")
    return arguments[0]


def _from_type(arguments: tuple[object, ...]) -> object:
    """``_rebuild_from_type_v2``: function, class, its arguments, attributes: a tensor that has
    attributes of Python, which are left out; subclasses were refused by name."""
    function, _, inner, *_ = arguments
    if not isinstance(function, Function) or type(inner) is not tuple:
        raise ValueError("a tensor that no function makes")
    return function.call(inner)


def _ordered_dict(arguments: tuple[object, ...]) -> object:
    mapping: dict[object, object] = {}
    for pair in arguments[0] if arguments and type(arguments[0]) is list else ():
        if type(pair) not in (tuple, list):
            raise ValueError("a dict's item that is no pair")
        key, value = pair
        mapping[key if type(key) is str else Opaque()] = value
    return mapping


def _first(arguments: tuple[object, ...]) -> object:
    return arguments[0] if arguments else ()


def _none(_: tuple[object, ...]) -> NoReturn:
    raise ValueError("a class that is never made so")


def _functions() -> dict[tuple[str, str], Function]:
    calls: dict[tuple[str, str], Callable[[tuple[object, ...]], object]] = {
        ("collections", "OrderedDict"): _ordered_dict,
        ("collections", "defaultdict"): lambda _: {},
        ("collections", "Counter"): lambda _: {},
        ("torch", "Size"): _first,
        ("torch", "Tensor"): _none,
        ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
        ("torch._utils", "_rebuild_tensor"): _tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        ("torch.nn.parameter", "Parameter"): _parameter,
        ("torch.nn.parameter", "Buffer"): _parameter,
        ("torch.serialization", "_get_layout"): lambda _: Opaque(),
        **{("torch.jit._pickle", name): _first for name in _TORCHSCRIPT_LISTS},
    }
    return {name: Function(call) for name, call in calls.items()}


_TABLE = _functions()

__all__ = ["Instance", "RefusedTensor", "Storage", "TorchTensor", "TorchVocabulary"]
