"""What ``import mergeengine`` offers, and what it costs."""

import subprocess
import sys

import mergeengine

NAMES = [
    "Block",
    "CheckpointError",
    "InputChangedError",
    "Interrupted",
    "LazyCheckpoint",
    "LazyTensor",
    "MergeEngineError",
    "OutputBusyError",
    "OutputError",
    "Plan",
    "PlanError",
    "ResourceError",
    "RunResult",
    "VerificationError",
    "compile_plan",
    "load_plan",
    "open_checkpoint",
    "run",
    "sweep",
    "verify",
]


def test_the_names_are_these_and_all_of_them_exist() -> None:
    assert mergeengine.__all__ == NAMES
    for name in NAMES:
        assert getattr(mergeengine, name).__doc__
    assert set(NAMES) <= set(dir(mergeengine))
    assert not hasattr(mergeengine, "nothing")


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import mergeengine; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(new - sys.stdlib_module_names))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "['mergeengine']"


def test_every_error_has_its_exit_code() -> None:
    codes = {name: getattr(mergeengine, name).exit_code for name in NAMES if name.endswith("Error")}
    assert codes == {
        "CheckpointError": 3,
        "InputChangedError": 3,
        "MergeEngineError": 1,
        "OutputBusyError": 6,
        "OutputError": 5,
        "PlanError": 2,
        "ResourceError": 4,
        "VerificationError": 7,
    }
    assert mergeengine.Interrupted.exit_code == 130
