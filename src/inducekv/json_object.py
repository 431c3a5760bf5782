"""JSON that someone else may have written: its size, depth and names are checked before it is used."""

import json
from pathlib import Path
from typing import Any

DEEPEST = 32
"""Lists and objects inside one another, at most: deeper ones overflow the stack of what reads them later."""


def parse_json(data: str | bytes) -> Any:
    """The value that a JSON text says.

    Raises:
        ValueError: it is not JSON, names a field twice, or is nested deeper than `DEEPEST`.
    """
    try:
        value = json.loads(data, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from error
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [x for item in level if isinstance(item, dict | list) for x in _inside(item)]
        if not level:
            return value
    raise ValueError(f"nested deeper than {DEEPEST} levels")


def _inside(item: dict[str, Any] | list[Any]) -> Any:
    return item.values() if isinstance(item, dict) else item


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field is named twice")
    return fields


def read_json_object(path: Path, what: str, largest: int) -> dict[str, Any]:
    """The object's fields.

    Args:
        path: of the file.
        what: it holds, for messages: "a model's configuration", say.
        largest: bytes that are read at most.

    Raises:
        ValueError: more bytes than that, no JSON, or something other than an object.
        OSError: no file to read.
    """
    if (size := path.stat().st_size) > largest:
        raise ValueError(f"{path} has {size:,} bytes; a file of {what} has {largest:,} at most")
    try:
        fields = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); mend it") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: expected one JSON object of {what}, got {type(fields).__name__}")
    return fields
