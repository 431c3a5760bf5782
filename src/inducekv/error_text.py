"""Text of an error message: short enough to read, and nothing in it steers a terminal."""

import reprlib
from typing import Any

LONGEST_MESSAGE = 500
"""Characters of a message, at most."""
LONGEST_VALUE = 80
"""Characters of a value that a message quotes, at most."""


def message(text: object, prefix: str = "") -> str:
    """`prefix` and a message, together at most `LONGEST_MESSAGE` characters; what cannot be printed is escaped.

    The middle of a longer one is left out, so that it still begins with what happened and ends with what to do.
    """
    return prefix + cut(escaped(str(text)), LONGEST_MESSAGE - len(prefix))


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


def escaped(text: str) -> str:
    """`text` with characters that cannot be printed written as in Python: an escape becomes `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def cut(text: str, limit: int) -> str:
    """`text`, or its beginning and its end with an ellipsis between them."""
    if len(text) <= limit:
        return text
    end = limit // 3
    return f"{text[: limit - end - 1]}…{text[-end:]}"
