"""JSON that strangers wrote: one object, no key twice, or a CheckpointError naming the file."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from mergeengine.errors import CheckpointError


def parse_object(data: bytes, label: str) -> dict[str, Any]:
    """The JSON object in `data`; `label` names the file in messages."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise CheckpointError(f"{label}: the key {shown(twice)} occurs twice in one object")
        return mapping

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{label}: not UTF-8 text, so not JSON ({error.reason})") from error
    except RecursionError:
        raise CheckpointError(f"{label}: not usable JSON: nested too deeply") from None
    except ValueError as error:
        raise CheckpointError(f"{label}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{label}: expected a JSON object, found {_kind(value)}")
    return value


def shown(text: object) -> str:
    """`text` from an untrusted file, quoted, in printable ASCII, and at most a line long."""
    try:
        quoted = ascii(text)
    except RecursionError:
        return "something nested too deeply"
    return quoted if len(quoted) <= 120 else f"{quoted[:110]}...{quoted[-5:]}"


def listing(items: Iterable[object], limit: int = 20) -> str:
    """``a, b, c and 7 more``, every item quoted."""
    everything = list(items)
    text = ", ".join(shown(item) for item in everything[:limit])
    rest = len(everything) - limit
    return f"{text} and {rest} more" if rest > 0 else text


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
