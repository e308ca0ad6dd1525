"""Where the arithmetic happens."""

import torch

from mergeengine.errors import ResourceError

CPU = torch.device("cpu")


def choose_devices(names: str = "auto") -> tuple[torch.device, ...]:
    """The devices called ``names``: the CPU alone, or accelerators of one type, each once.

    ``auto`` is the accelerator where there is one, else the CPU; ``cuda:0,cuda:1`` are two.
    Accelerators have an index. Raises ResourceError, naming what there is, for a device that is not
    here or that cannot compute in float64, which float32 outputs need.
    """
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if names == "auto":
        return (CPU if there is None or not _has_float64(there) else _indexed(there),)
    chosen = [_choose(name.strip(), there) for name in names.split(",")]
    if len(chosen) > 1 and CPU in chosen:
        raise ResourceError(
            f"--device {names}: the CPU and accelerators do not share a run; name one or the others"
        )
    for device in chosen:
        if chosen.count(device) > 1:
            raise ResourceError(f"--device {names}: {device} is there twice")
    return tuple(chosen)


def _choose(name: str, there: torch.device | None) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ResourceError(
            f"no device {name!r}: write cpu, cuda, cuda:0 or several as cuda:0,cuda:1"
        ) from error
    if device.type == "cpu":
        return CPU
    if there is None or device.type != there.type:
        found = f"only the CPU and {there.type}" if there else "only the CPU"
        raise ResourceError(
            f"no device {name!r} on this machine: torch finds {found}. Use --device cpu, or leave "
            "--device out"
        )
    if device.index is not None and device.index >= torch.accelerator.device_count():
        raise ResourceError(
            f"no device {name!r}: there are {torch.accelerator.device_count()} of its type, "
            "counted from 0"
        )
    if not _has_float64(device):
        raise ResourceError(f"{name} has no float64, which float32 outputs are computed in")
    return _indexed(device)


def _indexed(device: torch.device) -> torch.device:
    if device.index is not None:
        return device
    return torch.device(device.type, torch.accelerator.current_device_index())


def _has_float64(device: torch.device) -> bool:
    return device.type != "mps"
