"""mergeengine: carry fine-tuning over to new model versions, out of core.

    import mergeengine

    mergeengine.run("plan.yaml")                                # as `mergeengine run plan.yaml`

    target, base, ft = map(mergeengine.open_checkpoint, ("./v2", "./v1", "./v1-instruct"))
    (target + 0.8 * (ft - base)).save("./v2-instruct", tokenizer=ft)    # reads nothing before

Everything here is loaded when it is first used: importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergeengine.errors import (
        CheckpointError,
        InputChangedError,
        Interrupted,
        MergeEngineError,
        OutputBusyError,
        OutputError,
        PlanError,
        ResourceError,
        VerificationError,
    )
    from mergeengine.lazy.tensor import LazyTensor
    from mergeengine.plan.plan import Plan
    from mergeengine.workflow.existing import verify
    from mergeengine.workflow.lazy_checkpoint import Block, LazyCheckpoint, compile_plan
    from mergeengine.workflow.lazy_checkpoint import open_lazily as open_checkpoint
    from mergeengine.workflow.reading import load_plan
    from mergeengine.workflow.run import RunResult, run
    from mergeengine.workflow.sweep import sweep

_HOMES = {
    "Block": "workflow.lazy_checkpoint:Block",
    "CheckpointError": "errors:CheckpointError",
    "InputChangedError": "errors:InputChangedError",
    "Interrupted": "errors:Interrupted",
    "LazyCheckpoint": "workflow.lazy_checkpoint:LazyCheckpoint",
    "LazyTensor": "lazy.tensor:LazyTensor",
    "MergeEngineError": "errors:MergeEngineError",
    "OutputBusyError": "errors:OutputBusyError",
    "OutputError": "errors:OutputError",
    "Plan": "plan.plan:Plan",
    "PlanError": "errors:PlanError",
    "ResourceError": "errors:ResourceError",
    "RunResult": "workflow.run:RunResult",
    "VerificationError": "errors:VerificationError",
    "compile_plan": "workflow.lazy_checkpoint:compile_plan",
    "load_plan": "workflow.reading:load_plan",
    "open_checkpoint": "workflow.lazy_checkpoint:open_lazily",
    "run": "workflow.run:run",
    "sweep": "workflow.sweep:sweep",
    "verify": "workflow.existing:verify",
}

__all__ = [
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


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'mergeengine' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(import_module(f"mergeengine.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
