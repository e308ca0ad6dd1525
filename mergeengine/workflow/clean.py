"""What stopped runs left: found, and removed where no run holds it."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mergeengine.errors import OutputBusyError
from mergeengine.output.workspace import Workspace, allocated_bytes, output_error, workspace_path
from mergeengine.workflow.reading import is_chain, load_chain, load_plan

_PLAN_SUFFIXES = (".yaml", ".yml")
_HOLDING = {"files", "replaced", "scratch"}
_PARTS = _HOLDING | {"lock", "journal"}


@dataclass(frozen=True, slots=True)
class Leftover:
    """A stopped run's partial output: the disk space it takes, and whether a run holds it now."""

    output: Path
    bytes: int
    in_use: bool

    @property
    def path(self) -> Path:
        return workspace_path(self.output)


def clean(paths: Iterable[Path], *, dry_run: bool = False) -> list[Leftover]:
    """Remove the partial outputs that ``paths`` speak of, except those in use.

    A path is the file of a plan or chain, an output, a partial output, or a folder to search.
    """
    outputs = dict.fromkeys(output for path in paths for output in _outputs(path.absolute()))
    return [_removed(output, dry_run) for output in outputs]


def _removed(output: Path, dry_run: bool) -> Leftover:
    path = workspace_path(output)
    size = _disk_bytes(path)
    try:
        with Workspace(output) as workspace:
            if not dry_run:
                workspace.discard()
    except OutputBusyError:
        return Leftover(output, size, in_use=True)
    except OSError as error:
        raise output_error(path, error) from error
    return Leftover(output, size, in_use=False)


def _outputs(path: Path) -> Iterator[Path]:
    """The outputs, finished or not, whose partial folders ``path`` speaks of."""
    if path.suffix in _PLAN_SUFFIXES and path.is_file():
        for planned in _planned(path):
            if planned is not None and _output_of(workspace_path(planned)) is not None:
                yield planned
        return
    own = _output_of(path)
    if own is not None:
        yield own
        return
    if _output_of(workspace_path(path)) is not None:
        yield path
    if path.is_dir():
        for folder, names, _ in os.walk(path):
            found = {name: _output_of(Path(folder, name)) for name in names}
            yield from (output for output in found.values() if output is not None)
            names[:] = [name for name in names if found[name] is None]


def _planned(path: Path) -> list[Path | None]:
    """Where a plan's output goes, or those of a chain's steps."""
    if is_chain(path):
        return [step.output for step in load_chain(path).steps]
    return [load_plan(path).output.path]


def _output_of(path: Path) -> Path | None:
    """The output that a folder is the partial of, judged by its name and by what is in it."""
    name = path.name
    if not (name.startswith(".") and name.endswith(".partial") and len(name) > len("..partial")):
        return None
    if path.is_symlink() or not path.is_dir():
        return None
    parts = {entry.name for entry in path.iterdir()}
    if not parts <= _PARTS or ("lock" not in parts and parts & _HOLDING):
        return None
    return path.with_name(name[1 : -len(".partial")])


def _disk_bytes(path: Path) -> int:
    """Blocks on the disk, each file once: a partial output is allocated before it is written."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            total += allocated_bytes(Path(folder, name))
    return total
