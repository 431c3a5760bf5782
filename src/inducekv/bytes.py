"""Sizes in bytes, as people write them ("256KiB") and as the code counts them (int)."""

import re

from inducekv.error_text import shown

UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}


def parse_bytes(size: int | str) -> int:
    """Read a size such as `"256KiB"`, `"1.5 MB"`, `"4096"` or `4096` as a whole number of bytes (rounded down).

    Raises:
        TypeError: `size` is neither an int nor a str.
        ValueError: the text is not a size, or the size is negative.
    """
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise TypeError(f"a size must be an int (bytes) or a str such as '256KiB', got {shown(size)}")
    if isinstance(size, int):
        if size < 0:
            raise ValueError(f"a size cannot be negative, got {size}")
        return size
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)\s*", size)
    if match is None or match[2].lower() not in UNITS:
        raise ValueError(f"cannot read {shown(size)} as a size; write a number and one of B, KB, MB, GB, KiB, MiB, GiB")
    return (
        int(float(match[1]) * UNITS[match[2].lower()]) if "." in match[1] else int(match[1]) * UNITS[match[2].lower()]
    )


def format_bytes(size: int) -> str:
    """Write a size for a person: `262144 -> "256 KiB"`, `1000 -> "1000 B"`, `1536 -> "1.5 KiB"`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(size) >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{size} B"
