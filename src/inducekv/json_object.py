"""A JSON object in a file that someone else may have written."""

import json
from pathlib import Path
from typing import Any


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
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); mend it") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: expected one JSON object of {what}, got {type(fields).__name__}")
    return fields
