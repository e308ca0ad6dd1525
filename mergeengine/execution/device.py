"""Where the arithmetic happens."""

import torch

from mergeengine.errors import ResourceError


def choose_device(name: str = "auto") -> torch.device:
    """The device called ``name``; ``auto`` is the accelerator where there is one, else the CPU.

    Raises ResourceError, naming what there is, for a device that is not here or that cannot
    compute in float64, which float32 outputs need.
    """
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        usable = there is not None and _has_float64(there)
        return there if there is not None and usable else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ResourceError(f"no device {name!r}: write cpu, cuda or cuda:0") from error
    if device.type == "cpu":
        return torch.device("cpu")
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
    return device


def _has_float64(device: torch.device) -> bool:
    return device.type != "mps"
