"""How error messages show values of users' data, however large, and the names of their files."""

from __future__ import annotations

import reprlib
from typing import Any

from inducekv.error_text import LONGEST_VALUE, cut, escaped


def shown(value: Any, limit: int = LONGEST_VALUE) -> str:
    """A value as `repr` writes it, cut to `limit` characters without writing all of a large one first."""
    if isinstance(value, bytes | bytearray):
        value = bytes(value[:limit])
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = limit
    short.maxlevel = 3
    try:
        text = short.repr(value)
    except Exception:  # an object's own repr may raise anything
        text = f"<{type(value).__name__}>"
    return cut(escaped(text).replace("\n", " "), limit)


def shown_name(name: Any, limit: int = 150) -> str:
    """A path, an address or an id without quotes, cut in its middle to `limit` characters."""
    text = str(name)
    if len(text) > limit:
        text = f"{text[: limit // 3]}…{text[-(limit - limit // 3 - 1) :]}"
    return cut(escaped(text), limit)
