"""The limit of this process's control groups, read from made-up trees of files."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mergeengine.workflow import settings
from mergeengine.workflow.cgroups import memory_limit
from mergeengine.workflow.settings import Settings

GiB = 1 << 30
UNLIMITED_V1 = "9223372036854771712\n"
V1 = "35 31 0:32 {} {} rw,relatime shared:9 - cgroup cgroup rw,memory"
V1_CPU = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"
V2 = "30 23 0:26 {} {} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
DISK = "23 1 254:0 / / rw,relatime - ext4 /dev/vda rw"

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Makes a root with /proc/self and the limits given by their path."""

    def make(
        groups: str, mounts: list[str], limits: Mapping[str, str], below: str = "/sys/fs/cgroup"
    ) -> Path:
        process = tmp_path / "proc/self"
        process.mkdir(parents=True)
        (process / "cgroup").write_text(groups)
        (process / "mountinfo").write_text("\n".join([DISK, *mounts]) + "\n")
        for name, text in limits.items():
            file = tmp_path / below[1:] / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path

    return make


def v2(mounted: str = "/", point: str = "/sys/fs/cgroup") -> list[str]:
    return [V2.format(mounted, point)]


def v1(mounted: str = "/", point: str = "/sys/fs/cgroup/memory") -> list[str]:
    return [V1_CPU, V1.format(mounted, point)]


@pytest.mark.parametrize(
    ("own", "above", "top", "wanted"),
    [
        ("1000\n", "2000\n", "3000\n", 1000),
        ("max\n", "2000\n", "3000\n", 2000),
        ("4000\n", "max\n", "3000\n", 3000),
        ("max\n", "max\n", "max\n", None),
    ],
)
def test_the_tightest_limit_of_version_2(
    own: str, above: str, top: str, wanted: int | None, tree: Tree
) -> None:
    limits = {
        "a/b/memory.max": own,
        "a/memory.max": above,
        "memory.max": top,
        "a/other/memory.max": "7\n",
        "a/b/below/memory.max": "7\n",
    }
    assert memory_limit(tree("0::/a/b\n", v2(), limits)) == wanted


def test_what_slows_down_is_a_limit(tree: Tree) -> None:
    limits = {"a/memory.max": "2000\n", "a/memory.high": "1500\n"}
    assert memory_limit(tree("0::/a\n", v2(), limits)) == 1500


@pytest.mark.parametrize(
    ("own", "above", "top", "wanted"),
    [
        ("1000\n", "2000\n", UNLIMITED_V1, 1000),
        (UNLIMITED_V1, "2000\n", UNLIMITED_V1, 2000),
        (UNLIMITED_V1, UNLIMITED_V1, "3000\n", 3000),
    ],
)
def test_the_tightest_limit_of_version_1(
    own: str, above: str, top: str, wanted: int, tree: Tree
) -> None:
    limits = {
        "memory/a/b/memory.limit_in_bytes": own,
        "memory/a/memory.limit_in_bytes": above,
        "memory/memory.limit_in_bytes": top,
        "cpu/c/memory.limit_in_bytes": "7\n",
        "memory/c/memory.limit_in_bytes": "7\n",
    }
    groups = "9:name=systemd:/c\n4:memory:/a/b\n3:cpu,cpuacct:/c\n0::/\n"
    assert memory_limit(tree(groups, v1(), limits)) == wanted


def test_controllers_mounted_together(tree: Tree) -> None:
    mount = "35 31 0:32 / /sys/fs/cgroup/both rw - cgroup cgroup rw,cpu,memory"
    limits = {"both/a:b/memory.limit_in_bytes": "1000\n"}
    assert memory_limit(tree("4:cpu,memory:/a:b\n", [mount], limits)) == 1000


def test_both_versions_at_once(tree: Tree) -> None:
    limits = {
        "memory/a/memory.limit_in_bytes": "2000\n",
        "unified/a/memory.max": "1000\n",
    }
    mounts = v1() + v2(point="/sys/fs/cgroup/unified")
    assert memory_limit(tree("4:memory:/a\n0::/a\n", mounts, limits)) == 1000


def test_a_container_that_is_shown_only_its_own_group(tree: Tree) -> None:
    """The path is that of the host, the mount shows what is below the container's group."""
    limits = {
        "memory/memory.limit_in_bytes": "2000\n",
        "memory/job/memory.limit_in_bytes": "1000\n",
    }
    groups = "4:memory:/docker/0123/job\n"
    assert memory_limit(tree(groups, v1("/docker/0123"), limits)) == 1000


@pytest.mark.parametrize("group", ["/elsewhere", "/docker/01234", "/../../a"])
def test_a_group_outside_of_what_is_shown(group: str, tree: Tree) -> None:
    limits = {"memory.max": "2000\n", "4/memory.max": "7\n", "a/memory.max": "7\n"}
    assert memory_limit(tree(f"0::{group}\n", v2("/docker/0123"), limits)) == 2000


def test_limits_above_the_mount_are_not_looked_for(tree: Tree) -> None:
    limits = {"memory/a/memory.max": "2000\n", "memory.max": "7\n"}
    assert memory_limit(tree("0::/a\n", v2(point="/sys/fs/cgroup/memory"), limits)) == 2000


def test_a_mount_with_a_space_in_its_path(tree: Tree) -> None:
    limits = {"a b/memory.max": "1000\n"}
    mounts = v2("/c\\040d", "/my\\040groups")
    assert memory_limit(tree("0::/c d/a b\n", mounts, limits, below="/my groups")) == 1000


@pytest.mark.parametrize("groups", ["", "0::/a\n", "4:memory:/a\n", "3:cpu:/a\n"])
def test_no_limit_is_found_where_nothing_is_mounted(groups: str, tree: Tree) -> None:
    assert memory_limit(tree(groups, [], {"a/memory.max": "7\n"})) is None


def test_lines_of_another_form_are_passed_over(tree: Tree) -> None:
    mounts = ["", "?", "1 2 - cgroup2 cgroup2 rw", *v2()]
    assert memory_limit(tree("\n?\n0::/a\n", mounts, {"a/memory.max": "1000\n"})) == 1000


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) is None


@pytest.mark.parametrize(
    ("limit", "budget"),
    [
        (1 << 60, 16 * GiB),
        (None, 16 * GiB),
        (8 * GiB, 2 * GiB),
        (4 * GiB, GiB),
        (3 * GiB, GiB),
        (GiB, GiB // 2),
        (256 << 20, 128 << 20),
    ],
)
def test_the_default_budget_leaves_room(
    limit: int | None, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ram = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 64 * GiB // 4096}
    monkeypatch.setattr("os.sysconf", ram.__getitem__)
    monkeypatch.setattr(settings, "memory_limit", lambda: limit)
    assert Settings().memory_budget == budget
    assert Settings(memory=5).memory_budget == 5
