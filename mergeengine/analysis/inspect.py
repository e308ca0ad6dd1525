"""What a checkpoint is, as its config and headers say it."""

from collections.abc import Iterable
from dataclasses import dataclass

from mergeengine.checkpoints.adapter_config import read_settings
from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.config import contradictions
from mergeengine.checkpoints.folder import ADAPTER_CONFIG
from mergeengine.checkpoints.quantised import quantised
from mergeengine.lazy.weight import Derived, Weight
from mergeengine.values.anatomy import Anatomy
from mergeengine.values.kinds import ROLES


@dataclass(frozen=True, slots=True)
class DtypeShare:
    """The tensors of one element type."""

    dtype: str
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A model in a few lines. ``parameters`` counts the elements of floating-point tensors.

    Of an adapter, ``adapter`` says what it is and ``adapts`` the model that it was trained on, as
    it says itself.
    """

    reference: str
    revision: str | None
    architectures: tuple[str, ...]
    model_type: str | None
    parameters: int
    bytes: int
    tensor_count: int
    dtypes: tuple[DtypeShare, ...]
    files: tuple[tuple[str, int], ...]
    companions: tuple[str, ...]
    warnings: tuple[str, ...]
    adapter: str | None = None
    adapts: str | None = None
    quantised: str | None = None


def summarise(checkpoint: Checkpoint) -> Summary:
    """Count what the headers list; nothing is read or fetched."""
    config = checkpoint.config or {}
    named = config.get("architectures")
    kind = config.get("model_type")
    tensors = checkpoint.tensors.values()
    problem = quantised(checkpoint.config)
    adapter = adapts = None
    if checkpoint.adapter is not None:
        settings = read_settings(checkpoint.adapter, f"{checkpoint}: {ADAPTER_CONFIG}")
        adapter, adapts = settings.described, settings.base
    return Summary(
        reference=str(checkpoint),
        revision=checkpoint.revision,
        architectures=tuple(map(str, named)) if isinstance(named, list) else (),
        model_type=kind if isinstance(kind, str) else None,
        parameters=sum(tensor.numel for tensor in tensors if tensor.dtype.is_float),
        bytes=sum(tensor.nbytes for tensor in tensors),
        tensor_count=len(tensors),
        dtypes=_shares(tensors),
        files=tuple((file.path.name, file.size) for file in checkpoint.files),
        companions=checkpoint.companions(),
        warnings=(
            *([problem] if problem else []),
            *checkpoint.notes,
            *contradictions(checkpoint.config, checkpoint.tensors),
        ),
        adapter=adapter,
        adapts=adapts,
        quantised=_quantised(checkpoint),
    )


def _quantised(checkpoint: Checkpoint) -> str | None:
    """``196 weights in float8_e4m3fn, with a scale for each 128 × 128 elements``."""
    found = [
        tensor.quantised
        for tensor in checkpoint.tensors.values()
        if isinstance(tensor, Derived) and tensor.quantised is not None
    ]
    if not found:
        return None
    first = found[0]
    whole = first.factors == first.weight.shape
    each = "tensor" if whole else f"{' × '.join(map(str, first.factors))} elements"
    return f"{len(found)} weights in {first.weight.dtype}, with a scale for each {each}"


@dataclass(frozen=True, slots=True)
class KindShare:
    """The tensors of one kind, and the name of the first. ``role``: not a module's name only."""

    kind: str
    role: bool
    tensors: int
    elements: int
    example: str


def kinds_of(checkpoint: Checkpoint) -> tuple[KindShare, ...]:
    """What `kind` can select in a model: the roles, then the names of modules."""
    anatomy = Anatomy({name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    by_kind: dict[str, list[Weight]] = {}
    for tensor in checkpoint.tensors.values():
        for kind in anatomy.tensor(tensor.name).kinds:
            by_kind.setdefault(kind, []).append(tensor)
    modules = sorted(by_kind.keys() - set(ROLES))
    return tuple(
        KindShare(kind, kind in ROLES, len(of), sum(t.numel for t in of), of[0].name)
        for kind in (*(role for role in ROLES if role in by_kind), *modules)
        for of in [by_kind[kind]]
    )


def _shares(tensors: Iterable[Weight]) -> tuple[DtypeShare, ...]:
    """Element types, the one with the most bytes first."""
    by_dtype: dict[str, list[Weight]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype.name, []).append(tensor)
    shares = [
        DtypeShare(name, len(of), sum(t.numel for t in of), sum(t.nbytes for t in of))
        for name, of in by_dtype.items()
    ]
    return tuple(sorted(shares, key=lambda share: -share.bytes))
