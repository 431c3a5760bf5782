"""What an error message shows: readable, short, and nothing that would steer a terminal."""

from __future__ import annotations

import reprlib
from typing import Any

MESSAGE_LIMIT = 500
"""Most characters of an error message. CHOICE."""
_TAIL = 150


def printable(text: str) -> str:
    """The text with every character that cannot be printed, line ends excepted, replaced by U+FFFD."""
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)


def brief(message: str, limit: int = MESSAGE_LIMIT) -> str:
    """The message printable and cut in its middle to at most `limit` characters."""
    if len(message) > limit:
        message = f"{message[: limit - _TAIL - 3]} … {message[-_TAIL:]}"
    return printable(message)


def shown(value: Any, limit: int = 80) -> str:
    """A value as `repr` writes it, cut to about `limit` characters without writing all of a large one first."""
    if isinstance(value, bytes | bytearray):
        value = bytes(value[:limit])
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = limit
    short.maxlevel = 3
    try:
        text = short.repr(value)
    except Exception:  # an object's own repr may raise anything
        text = f"<{type(value).__name__}>"
    return printable(text if len(text) <= limit else f"{text[: limit - 1]}…")


def shown_name(name: Any, limit: int = 150) -> str:
    """A path, an address or an id without quotes, cut in its middle to at most `limit` characters."""
    text = str(name)
    if len(text) > limit:
        text = f"{text[: limit // 3]}…{text[-(limit - limit // 3 - 1) :]}"
    return printable(text)
