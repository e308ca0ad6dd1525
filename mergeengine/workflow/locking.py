"""The lock beside a plan: written, checked, or taken anew."""

from dataclasses import dataclass
from pathlib import Path

from mergeengine.chain.chain import Chain
from mergeengine.output.lock import PlanLock, lock_path, write_lock
from mergeengine.plan.plan import Plan
from mergeengine.workflow.chain.inputs import Inputs
from mergeengine.workflow.chain.records import read_records, write_records
from mergeengine.workflow.prepare import resolve
from mergeengine.workflow.settings import Settings


@dataclass(frozen=True, slots=True)
class Locked:
    """A plan's lock; ``written`` is False where it said the same already."""

    path: Path
    lock: PlanLock
    written: bool


def lock_plan(plan: Plan, settings: Settings, *, update: bool = False) -> Locked:
    """Pin what each model is now; hub models keep their locked commits unless with ``update``."""
    _, pins = resolve(plan, settings, update=update)
    path = lock_path(plan.file)
    return Locked(path, pins, write_lock(path, pins))


def lock_chain(
    chain: Chain, settings: Settings, *, update: bool = False, check: bool = False
) -> Locked:
    """The same for the models of a chain that are not its own; its steps stay as they are. With
    ``check`` nothing is written, and VerificationError raised where a model is another."""
    path = lock_path(chain.file)
    lock, records = read_records(path)
    inputs = Inputs(chain, PlanLock() if update else lock, settings.offline, locked=check)
    for step in chain.steps:
        for _, reference, weights in inputs.of(step):
            inputs.open(reference, weights)
    if check:
        return Locked(path, lock, written=False)
    written = write_records(path, inputs.pins, records, chain.substituted.document())
    return Locked(path, PlanLock(inputs.pins), written)


def check_plan_lock(plan: Plan, settings: Settings) -> Locked:
    """VerificationError unless every model is what the lock says; nothing is written."""
    _, pins = resolve(plan, settings, locked=True)
    return Locked(lock_path(plan.file), pins, written=False)
