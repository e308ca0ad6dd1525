"""Sizes in bytes: ``"8GiB"`` to int and back."""

import re

_FACTORS = {
    "": 1,
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGTP", 1)},
    **{f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGTP", 1)},
}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")


def parse_size(text: str | int) -> int:
    """Bytes of ``5GB`` (decimal), ``8GiB`` (binary), ``4096`` or an int; ValueError otherwise."""
    if isinstance(text, int) and not isinstance(text, bool):
        size = text
    else:
        matched = _SIZE.fullmatch(str(text).strip())
        if matched is None or matched[2].upper() not in _FACTORS:
            raise ValueError(f"not a size: {text!r} (write for example 5GB, 512MiB or 1048576)")
        size = int(float(matched[1]) * _FACTORS[matched[2].upper()])
    if size <= 0:
        raise ValueError(f"a size must be positive, not {text!r}")
    return size


def format_size(size: float) -> str:
    """``1.5 GB``: decimal units, as disks and file managers count."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if abs(size) < 999.5 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


def format_binary_size(size: float) -> str:
    """``512 MiB``: binary units, as memory is counted."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.4g} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
