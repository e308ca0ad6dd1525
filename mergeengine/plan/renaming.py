"""The entries of `rename`: which of their keys go together, and what they become."""

from __future__ import annotations

from collections.abc import Iterator

from mergeengine.plan.document import Node, Path
from mergeengine.plan.problems import Problems
from mergeengine.plan.schema import RenameKeys
from mergeengine.values.positions import Position
from mergeengine.values.renaming import ROLES_OF_NAMES, Rename


def rename_of(keys: RenameKeys, position: Position | None) -> Rename:
    """The rule of an entry; ValueError where its replacement does not fit its pattern."""
    pattern = keys.regex if keys.regex is not None else keys.match
    assert pattern is not None
    roles = tuple(keys.of) if keys.of else ROLES_OF_NAMES
    return Rename(pattern, keys.to, keys.regex is not None, roles, position)


def check_renames(root: Node, problems: Problems) -> None:
    """What is wrong with the entries of every `rename`."""
    for entry in _entries(root):
        given = [key for key in ("match", "regex") if entry.get(key) is not None]
        if len(given) != 1:
            found = "found both" if given else "found neither"
            problems.add(entry.position, f"a rename has either `match` or `regex`, {found}")
            continue
        pattern, to = entry.get(given[0]), entry.get("to")
        if pattern is None or to is None:
            continue
        if isinstance(pattern.value, str) and isinstance(to.value, str):
            try:
                Rename(pattern.value, to.value, given[0] == "regex")
            except ValueError as error:
                problems.add(entry.position, str(error))


def _entries(root: Node) -> Iterator[Node]:
    """Entries that are mappings: other ones are told already."""
    for path, node in root.walk():
        if _is_rename(path) and isinstance(node.value, list):
            yield from (entry for entry in node.value if entry.keys)


def _is_rename(path: Path) -> bool:
    return path == ("rename",) or (path[:1] == ("sources",) and path[2:] == ("rename",))
