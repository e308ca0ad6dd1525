"""A pickle, read for what it says: plain values are built, and nothing in it is run.

Its opcodes come from the standard library's `pickletools`. What would be a call in `pickle` is one
here only to functions that `Vocabulary` knows (`vocabulary.py`), which make plain records; every
other name is refused by it. What is built takes memory in proportion to the pickle's own length,
whatever it claims: lengths are compared with what is there, and the memo is a dict.
"""

import pickletools
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, cast

from mergeengine.checkpoints.documents import shown
from mergeengine.errors import CheckpointError

_MAX_BITS = 256  # of a whole number: there are none so large beside weights


class Opaque:
    """Something that is neither a tensor nor a part of a name: what it holds is not kept."""


@dataclass(slots=True, eq=False)
class Instance:
    """An object of a class that is only looked at: its attributes."""

    module: str
    name: str
    attributes: dict[object, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Class:
    """The name of a class whose objects are only looked at."""

    module: str
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """A function of ours that stands for one that a pickle names."""

    call: Callable[[tuple[object, ...]], object]


class Vocabulary(Protocol):
    """What the names in a pickle mean; CheckpointError where they mean nothing good."""

    def find(self, module: str, name: str) -> object:
        """What a global stands for."""

    def persistent(self, identity: object) -> object:
        """What a persistent id stands for."""


class Stream(Protocol):
    """What a pickle is read from."""

    def read(self, count: int, /) -> bytes: ...

    def readline(self) -> bytes: ...

    def tell(self) -> int: ...


def unpickle(stream: Stream, vocabulary: Vocabulary, label: str) -> Any:
    """The value of the pickle at the stream's position, which is left behind its end.

    A pickle that is damaged, or not one, is a CheckpointError; `label` names the file.
    """
    machine = _Machine(vocabulary)
    try:
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], stream)):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except LookupError as error:
        raise _damaged(label, "it refers to what is not there") from error
    except (ValueError, EOFError, struct.error, OverflowError, RecursionError) as error:
        raise _damaged(label, str(error)) from error
    raise AssertionError("genops ends with STOP or raises")


def _damaged(label: str, detail: str) -> CheckpointError:
    return CheckpointError(
        f"{label}: the pickle in it is damaged, or it is no torch file ({shown(detail)[1:-1]}): "
        "copy or download it again"
    )


def _plain_key(key: object) -> object:
    """Names are keys; any other key might be slow to hash or to compare, and is never asked for."""
    return key if type(key) is str else Opaque()


class _Machine:
    """The stack, the marks and the memo of a pickle that is being read."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.stack: list[Any] = []
        self._vocabulary = vocabulary
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """One opcode. LookupError and ValueError mean that the pickle is malformed."""
        push, pop = self.stack.append, self.stack.pop
        match name:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                push({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4":
                if argument.bit_length() > _MAX_BITS:
                    raise ValueError(f"a number of {argument.bit_length()} bits")
                push(argument)
            case (
                "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8"
                | "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "FLOAT" | "BINFLOAT"
            ):  # fmt: skip
                push(argument)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                push(argument)
            case "EMPTY_TUPLE":
                push(())
            case "EMPTY_LIST":
                push([])
            case "EMPTY_DICT":
                push({})
            case "EMPTY_SET":
                push(Opaque())
            case "MARK":
                self._marks.append(len(self.stack))
            case "TUPLE":
                push(tuple(self._marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(self._last(int(name[-1]))))
            case "LIST":
                push(self._marked())
            case "DICT":
                items = self._marked()
                push(_with_items({}, items))
            case "FROZENSET":
                self._marked()
                push(Opaque())
            case "APPEND":
                self._extend([pop()])
            case "APPENDS" | "ADDITEMS":
                self._extend(self._marked())
            case "SETITEM":
                _with_items(self.stack[-3], self._last(2))
            case "SETITEMS":
                items = self._marked()
                _with_items(self.stack[-1], items)
            case "POP":
                if self._marks and self._marks[-1] == len(self.stack):
                    self._marks.pop()
                else:
                    pop()
            case "POP_MARK":
                self._marked()
            case "DUP":
                push(self.stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                push(self._memo[argument])
            case "GLOBAL":
                push(self._vocabulary.find(*_pair(argument)))
            case "STACK_GLOBAL":
                module, attribute = self._last(2)
                if type(module) is not str or type(attribute) is not str:
                    raise ValueError("a global whose name is no text")
                push(self._vocabulary.find(module, attribute))
            case "REDUCE" | "NEWOBJ":
                function, arguments = self._last(2)
                push(_called(function, arguments))
            case "NEWOBJ_EX":
                function, arguments, _ = self._last(3)
                push(_called(function, arguments))
            case "INST":
                arguments = tuple(self._marked())
                push(_called(self._vocabulary.find(*_pair(argument)), arguments))
            case "OBJ":
                function, *rest = self._marked()
                push(_called(function, tuple(rest)))
            case "BUILD":
                state = pop()
                target = self.stack[-1]
                if isinstance(target, Instance) and type(state) is dict:
                    target.attributes.update(state)
            case "BINPERSID":
                push(self._vocabulary.persistent(pop()))
            case _:  # extensions, textual persistent ids, buffers out of band: not in torch files
                raise ValueError(f"the opcode {name} does not occur in torch files")

    def _marked(self) -> list[Any]:
        """What lies above the last mark, taken off."""
        mark = self._marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _last(self, count: int) -> list[Any]:
        """The last `count` values, taken off."""
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _extend(self, items: Iterable[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)


def _with_items(target: Any, items: list[Any]) -> Any:
    """Set alternating keys and values in a dict; what is not one keeps nothing."""
    if len(items) % 2:
        raise ValueError("a key without a value")
    if type(target) is dict:
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_plain_key(key)] = value
    return target


def _called(function: Any, arguments: Any) -> object:
    if type(arguments) is not tuple:
        raise ValueError("the arguments of a call are no tuple")
    if isinstance(function, Function):
        return function.call(arguments)
    if isinstance(function, Class):
        return Instance(function.module, function.name)
    raise ValueError("what is called is no function")


def _pair(argument: str) -> tuple[str, str]:
    module, _, name = argument.partition(" ")
    return module, name
