"""``include``: plan files laid under a plan, key by key.

Lists are replaced as a whole. What an included file says of local paths starts at its own folder,
and is rewritten to start at the plan's: equal plans are then equal, whatever files they came from.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from mergeengine.plan.document import Node, place_in, read_yaml
from mergeengine.plan.files import UnreadableError, read_text
from mergeengine.plan.problems import Problems
from mergeengine.values.digests import digest_of
from mergeengine.values.excerpts import excerpt
from mergeengine.values.positions import Position

MAX_FILES = 32  # read in all, those that are included twice counted twice
_LOCAL = re.compile(r"\.{1,2}(?:/.*)?", re.DOTALL)


def lay_under(root: Node, file: Path, shown: str, problems: Problems) -> dict[str, str]:
    """Put what `root` includes below its own values, in place.

    Returns each included file, named from the plan's folder, with a digest of what it says:
    comments and layout do not count. Mistakes join `problems`.
    """
    including = _Including(file.parent.absolute(), problems)
    including.expand(root, _Opened(file, shown))
    return dict(sorted(including.digests.items()))


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file being read, and the entry of the file (and of its includer, ...) that asked for it."""

    path: Path
    shown: str
    asked: Position | None = None
    by: _Opened | None = None

    def chain(self) -> list[_Opened]:
        """This file, its includer, and so on up to the plan."""
        return [self, *(self.by.chain() if self.by is not None else [])]

    @property
    def real(self) -> str:
        return os.path.realpath(self.path)


@dataclass(slots=True)
class _Including:
    folder: Path
    problems: Problems
    digests: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def expand(self, root: Node, opened: _Opened) -> None:
        assert isinstance(root.value, dict)
        written = root.value.pop("include", None)
        root.keys.pop("include", None)
        rebase(root, os.path.relpath(opened.path.parent, self.folder))
        if written is None:
            return
        below = Node(root.position, {})
        for entry in self._entries(written):
            part = self._read(entry, opened)
            if part is not None:
                _lay_over(below, part)
        _lay_over(below, root)
        root.value, root.keys = below.value, below.keys

    def _entries(self, written: Node) -> list[Node]:
        entries = written.value if isinstance(written.value, list) else [written]
        expected = "`include`: expected the path of a plan file, or a list of paths, found "
        wrong = [entry for entry in entries if not (isinstance(entry.value, str) and entry.value)]
        for entry in wrong:
            self.problems.add(entry.position, expected + entry.described)
        if not entries:
            self.problems.add(written.position, expected + written.described)
        return [entry for entry in entries if entry not in wrong]

    def _read(self, entry: Node, by: _Opened) -> Node | None:
        """The tree of an included file with its own includes; None, and why, where it has none."""
        text = str(entry.value)
        shown = os.path.normpath(os.path.join(os.path.dirname(by.shown), text))  # noqa: PTH118, PTH120
        opened = _Opened(by.path.parent / text, shown, entry.position, by)
        refusal = self._refusal(text, opened)
        if refusal is None:
            try:
                content = read_text(opened.path)
            except UnreadableError as failure:
                at = f" (line {failure.line}, column {failure.column})" if failure.line else ""
                refusal = f"{failure}{at}"
        if refusal is not None:
            self.problems.add(entry.position, f"cannot include `{excerpt(text)}`: {refusal}")
            return None
        self.problems.open(shown, content, entry.position)
        root = read_yaml(content, place_in(shown), self.problems)
        if root is None:
            root = Node(Position(shown, 1, 1), {})
        if not isinstance(root.value, dict):
            message = f"expected lines of `key: value`, found {root.described}"
            self.problems.add(root.position, message)
            return None
        name = Path(os.path.relpath(opened.path, self.folder)).as_posix()
        self.digests[name] = digest_of(root.plain)
        self.expand(root, opened)
        return root

    def _refusal(self, text: str, opened: _Opened) -> str | None:
        """Why a file is not even opened."""
        if "$" in text:
            return "variables are not known here; write the path out"
        if text.startswith(("/", "~")) or ":" in text or "\\" in text or not text.isprintable():
            return "expected a path that is relative to this file, with / between folders"
        chain = opened.chain()
        if opened.real in [each.real for each in chain[1:]]:
            way = " → ".join(str(each.asked) for each in reversed(chain) if each.asked)
            return f"it includes itself ({way})"
        if not Path(opened.real).is_relative_to(_project(self.folder)):
            return "it lies outside of the plan's folder, and of the git repository around it"
        self.count += 1
        if self.count > MAX_FILES:
            return f"more than {MAX_FILES} files are included"
        return None


def _project(folder: Path) -> Path:
    """What includes may reach: the git repository of the plan, or else the plan's folder."""
    real = Path(os.path.realpath(folder))
    return next((each for each in (real, *real.parents) if (each / ".git").exists()), real)


def _lay_over(below: Node, above: Node) -> None:
    """The keys of `above` into `below`; mappings that both have are joined."""
    assert isinstance(below.value, dict)
    assert isinstance(above.value, dict)
    for key, child in above.value.items():
        under = below.value.get(key)
        if under is not None and isinstance(under.value, dict) and isinstance(child.value, dict):
            _lay_over(under, child)
        else:
            below.value[key] = child
        below.keys[key] = above.keys[key]


def rebase(root: Node, prefix: str) -> None:
    """Let local paths, which start at the file's folder, start at the plan's."""
    if prefix == ".":
        return
    for path, node in root.walk():
        text = node.value
        if not isinstance(text, str):
            continue
        if _LOCAL.fullmatch(text) or (
            path == ("output", "path") and not text.startswith(("/", "~", "$"))
        ):
            joined = f"{prefix}/{text.removeprefix('./')}"
            joined = joined if "$" in joined else os.path.normpath(joined)
            node.value = joined if joined.startswith("..") else f"./{joined}"
