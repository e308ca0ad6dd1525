"""What a run reports: of each output, and of the pass that made them."""

from typing import Any

from mergeengine.compiler.schedule import Schedule
from mergeengine.workflow.measure import Meter
from mergeengine.workflow.prepare import Prepared
from mergeengine.workflow.produce import Bounds, Pass, Produced, bounds_of


def made(prepared: Prepared, produced: Produced) -> dict[str, Any]:
    """What a report says of one output."""
    return {
        "plan": prepared.plan.name,
        "output": str(prepared.output),
        "made": produced.made,
        "identity": prepared.identity,
        "tensors": prepared.binding.counts(),
        "vocabulary": dict(prepared.binding.vocabulary),
        "precision": produced.precision,
    }


def spent(planned: Schedule | None, done: Pass | None, meter: Meter) -> dict[str, Any]:
    """What a report says of the pass that made outputs, or of the one that was not needed."""
    seconds = meter.seconds.get("merge")
    read = written = 0
    bounds = bounds_of(planned, None) if planned is not None else Bounds(0, 0)
    if done is not None:
        planned, bounds, written = done.schedule, done.bounds, done.written
        # What an earlier run finished need not be read again; the rest is read in proportion.
        if planned.write_bytes:
            read = round(planned.read_bytes * written / planned.write_bytes)
    return {
        "seconds": meter.seconds,
        "bytes": {
            "read": read,
            "transferred": done.transferred if done is not None else 0,
            "written": written,
            "kept_from_earlier_run": done.kept if done is not None else 0,
        },
        "gigabytes_per_second": round((read + written) / seconds / 1e9, 3) if seconds else None,
        "memory": {
            "projected_bytes": bounds.projected_bytes,
            "measured_bytes": meter.peak_bytes,
            "device_projected_bytes": bounds.device_bytes,
        },
        "device": done.device if done is not None else "",
        "loop": done.loop if done is not None else "",
        "workers": bounds.workers,
        "block_chunks": planned.block_chunks if planned is not None else 0,
    }
