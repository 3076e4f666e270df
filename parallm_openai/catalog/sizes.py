"""Sizes as people read them."""

from __future__ import annotations


def in_bytes(size: int) -> str:
    """A size as people read it: 540 MB."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g} {units[0]}"
