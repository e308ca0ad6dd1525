"""Which of the things in a torch file are the model's weights.

A file is a state dict, or a training checkpoint in which one lies beside an optimizer's state, or a
TorchScript archive, whose objects have weights as attributes.
"""

import re
from collections.abc import Callable, Mapping

from mergeengine.checkpoints.documents import listing, shown
from mergeengine.checkpoints.torch_files.unpickler import Instance
from mergeengine.checkpoints.torch_files.vocabulary import RefusedTensor, TorchTensor
from mergeengine.errors import CheckpointError

Found = dict[str, TorchTensor]

# Where training loops put a model's weights: looked at before any other name.
_USUAL = ("state_dict", "model_state_dict", "model_state", "model", "module", "weights", "params")
_MOST_LEVELS = 4  # of dicts around a state dict, and not fewer than anybody writes
_MOST_LOOKED_AT = 200_000  # attributes in a TorchScript archive, whose objects may share others
_LONGEST_PREFIX = 1000  # characters of a name
_PARAMETERS = re.compile(r"^class (\w+)\(\w+\):|^  __(?:parameters|buffers)__ = \[(.*?)\]", re.M)


def state_dict(content: object, label: str) -> tuple[Found, tuple[str, ...]]:
    """The tensors of a file by name, and the keys of the dicts in which they lie."""
    path: list[str] = []
    dicts = _Dicts()
    for _ in range(_MOST_LEVELS):
        if not isinstance(content, dict):
            break
        inner = [key for key, value in content.items() if dicts.hold(value, _MOST_LEVELS)]
        direct = [key for key in inner if dicts.have_tensors(content[key])]
        usual = [key for key in _USUAL if key in direct]
        if dicts.have_tensors(content) and not usual:
            if direct:
                raise _ambiguous(label, path, ["tensors beside them", *direct])
            return _tensors(content, label), tuple(path)
        candidates = usual or direct or inner
        if len(candidates) > 1:
            raise _ambiguous(label, path, candidates)
        if not candidates:
            break
        path += candidates
        content = content[candidates[0]]
    raise CheckpointError(
        f"{label}: there are no weights in it: expected a dict of names and tensors, or one that "
        f"holds such a dict, found {_shape_of(content)}"
    )


def module_state(root: Instance, code: Callable[[str], str | None], label: str) -> Found:
    """Parameters and buffers of a TorchScript module, by their dotted names.

    ``code`` gives the text of a class's file, which lists them; where there is none, every
    attribute that is a tensor is taken.
    """
    listed: dict[str, Mapping[str, set[str]] | None] = {}
    found: Found = {}
    stack = [("", root)]
    seen = 0
    while stack:
        prefix, module = stack.pop()
        seen += 1 + len(module.attributes)
        if seen > _MOST_LOOKED_AT or len(prefix) > _LONGEST_PREFIX:
            raise CheckpointError(f"{label}: its modules are nested without end: it is damaged")
        if module.module not in listed:
            text = code(module.module)
            listed[module.module] = None if text is None else _listed(text)
        classes = listed[module.module]
        names = classes.get(module.name) if classes else None
        for key, value in module.attributes.items():
            if type(key) is not str:
                continue
            if isinstance(value, Instance):
                stack.append((f"{prefix}{key}.", value))
            elif _is_tensor(value) and (names is None or key in names):
                found[f"{prefix}{key}"] = _usable(f"{prefix}{key}", value, label)
    if not found:
        raise CheckpointError(f"{label}: there is not one parameter in this TorchScript archive")
    return found


def _listed(text: str) -> dict[str, set[str]]:
    """The parameters and buffers of each class in a file of TorchScript code."""
    classes: dict[str, set[str]] = {}
    names: set[str] = set()
    for match in _PARAMETERS.finditer(text):
        if match[1]:
            names = classes.setdefault(match[1], set())
        else:
            names.update(re.findall(r'"([^"]*)"', match[2]))
    return classes


def _is_tensor(value: object) -> bool:
    return isinstance(value, TorchTensor | RefusedTensor)


class _Dicts:
    """What dicts hold, found once for each of them: one dict may lie in many places."""

    def __init__(self) -> None:
        self._have: dict[int, bool] = {}
        self._hold: dict[tuple[int, int], bool] = {}

    def have_tensors(self, value: object) -> bool:
        """Whether this is a dict that has tensors by name."""
        if not isinstance(value, dict):
            return False
        if id(value) not in self._have:
            named = (tensor for key, tensor in value.items() if type(key) is str)
            self._have[id(value)] = any(map(_is_tensor, named))
        return self._have[id(value)]

    def hold(self, value: object, levels: int) -> bool:
        """Whether this has tensors by name, or a dict by name that holds some."""
        if not isinstance(value, dict) or not levels:
            return False
        key = (id(value), levels)
        if key not in self._hold:
            named = (inner for name, inner in value.items() if type(name) is str)
            self._hold[key] = self.have_tensors(value) or any(
                self.hold(inner, levels - 1) for inner in named
            )
        return self._hold[key]


def _tensors(content: Mapping[object, object], label: str) -> Found:
    return {
        key: _usable(key, value, label)
        for key, value in content.items()
        if type(key) is str and _is_tensor(value)
    }


def _usable(name: str, tensor: object, label: str) -> TorchTensor:
    if not name or not name.isprintable():
        raise CheckpointError(
            f"{label}: {shown(name)} is not a usable tensor name (empty or not printable)"
        )
    if isinstance(tensor, RefusedTensor):
        raise CheckpointError(f"{label}: tensor {shown(name)} {tensor.why}")
    assert isinstance(tensor, TorchTensor)
    return tensor


def _ambiguous(label: str, path: list[str], candidates: list[str]) -> CheckpointError:
    where = "".join(f"[{shown(key)}]" for key in path)
    return CheckpointError(
        f"{label}: it is not clear which of its dicts{where and f' in {where}'} has the model's "
        f"weights: {listing(candidates, 6)}: load it with torch and save that one alone"
    )


def _shape_of(content: object) -> str:
    if isinstance(content, dict):
        keys = [key for key in content if type(key) is str]
        return f"a dict of {listing(keys, 6)}" if keys else "a dict without names"
    if isinstance(content, Instance):
        return f"an object of {shown(f'{content.module}.{content.name}')}"
    if _is_tensor(content):
        return "a single tensor, which has no name"
    return f"a {type(content).__name__}" if type(content) in (list, tuple, str) else "no dict"
