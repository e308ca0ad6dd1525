"""Digests of plain data."""

from __future__ import annotations

import hashlib
import json


def digest_of(document: object) -> str:
    """SHA-256 of plain data in its canonical JSON form."""
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"
