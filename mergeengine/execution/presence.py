"""Whether there can be an accelerator, without asking torch, which takes a second to import."""

import sys
from pathlib import Path

# What the drivers of accelerators put there; one that is not known here is found by its name.
_NODES = ("nvidia*", "kfd", "dxg", "dri", "accel*", "davinci*", "cambricon*", "mt*gpu*", "habana*")


def only_the_cpu(names: str, devices: Path = Path("/dev")) -> bool:
    """Whether ``--device names`` can only mean the CPU: it says so, or says ``auto`` on a Linux
    machine with no accelerator's node in ``devices``."""
    if names == "auto":
        return sys.platform == "linux" and not any(
            True for pattern in _NODES for _ in devices.glob(pattern)
        )
    return names == "cpu"
