"""Text of an error message: short enough to read, and nothing in it steers a terminal."""

LONGEST_MESSAGE = 500
"""Characters of a message, at most."""
LONGEST_VALUE = 80
"""Characters of a value that a message quotes, at most."""


def message(text: object) -> str:
    """A message of at most `LONGEST_MESSAGE` characters, what cannot be printed written as an escape.

    The middle of a longer one is left out, so that it still begins with what happened and ends with what to do.
    """
    return cut(escaped(str(text)), LONGEST_MESSAGE)


def value(given: object) -> str:
    """A value to quote in a message, at most `LONGEST_VALUE` characters of its `repr`."""
    try:
        return cut(repr(given), LONGEST_VALUE)
    except RecursionError:
        return f"a {type(given).__name__} nested too deeply to show"


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
