"""The memory that the kernel grants this process's control groups (Linux; containers are these)."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_V1 = ("memory.limit_in_bytes",)
_V2 = ("memory.max", "memory.high")  # above `high` a process is slowed down until it gives back


@dataclass(frozen=True, slots=True)
class Group:
    """A group of this process, in a hierarchy mounted at ``top``, of version 1 or 2."""

    folder: Path
    top: Path
    version: int

    def limits(self) -> Iterator[int]:
        """Bytes, from the group's own limits up to those of the top: all of them hold."""
        for folder in (self.folder, *self.folder.parents):
            for name in _V1 if self.version == 1 else _V2:
                with suppress(OSError, ValueError):  # no such file, or "max"
                    yield int((folder / name).read_text())
            if folder == self.top:
                return


def memory_limit(root: Path = Path("/")) -> int | None:
    """The tightest limit on this process's memory; None where there is none."""
    return min((limit for group in memory_groups(root) for limit in group.limits()), default=None)


def memory_groups(root: Path = Path("/")) -> list[Group]:
    """The groups that may limit this process's memory: of version 1, of version 2, or of both."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return []
    paths = dict(filter(None, map(_membership, memberships)))
    groups = []
    for line in mounts:
        with suppress(ValueError):  # a line in a form of its own is no reason to stop
            version, mounted, point = _mount(line)
            if version in paths:
                top = root / point.relative_to("/")
                groups.append(Group(top / _below(paths[version], mounted), top, version))
    return groups


def _membership(line: str) -> tuple[int, PurePosixPath] | None:
    """``4:cpu,memory:/path`` or, of version 2, ``0::/path``; None for another controller's."""
    number, _, rest = line.partition(":")
    controllers, _, path = rest.partition(":")
    if number == "0":
        return 2, PurePosixPath(path)
    return (1, PurePosixPath(path)) if "memory" in controllers.split(",") else None


def _mount(line: str) -> tuple[int, PurePosixPath, PurePosixPath]:
    """Version (0: it is no memory hierarchy), what of the hierarchy is mounted, and where."""
    mount, _, system = line.partition(" - ")
    kind, _, options = system.split(" ", 2)
    version = 2 if kind == "cgroup2" else 0
    if kind == "cgroup" and "memory" in options.split(","):
        version = 1
    mounted, point = mount.split(" ")[3:5]
    return version, _unescaped(mounted), _unescaped(point)


def _unescaped(path: str) -> PurePosixPath:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return PurePosixPath(path)


def _below(group: PurePosixPath, mounted: PurePosixPath) -> PurePosixPath:
    """Where a group lies below a mount, which in a container may show only a part of the tree.

    A group that it does not show is limited by what it does: by the top of the mount.
    """
    if ".." in group.parts or not group.is_relative_to(mounted):
        return PurePosixPath()
    return group.relative_to(mounted)
