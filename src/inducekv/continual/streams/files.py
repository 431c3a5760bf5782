"""Rows of published JSON files, and pictures that stay inside their folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inducekv.error_text import message, shown, shown_name

MAX_JSON_BYTES = 2 * 2**30
"""Most bytes a benchmark's JSON file may have (LLaVA-665K's has one gigabyte). CHOICE."""


def within(root: Path, relative: Any) -> Path:
    """A path below `root`, also after following symbolic links.

    Raises:
        ValueError: it leaves `root`, or is no path.
    """
    if not isinstance(relative, str) or not relative or "\0" in relative:
        raise ValueError(f"a path inside {root} must be text, got {shown(relative)}")
    top = root.resolve()
    try:
        path = (top / relative).resolve()
    except (OSError, RuntimeError) as error:  # too long a name, a loop of links
        raise ValueError(f"{shown_name(relative)}: {getattr(error, 'strerror', None) or error}") from error
    if not path.is_relative_to(top):
        raise ValueError(f"{shown_name(relative)}: leaves {shown_name(root)}; paths must stay inside it")
    return path


def first_existing(root: Path, alternatives: Sequence[str]) -> Path | None:
    """The first of the relative paths that is there; the same benchmark is handed out in several layouts."""
    return next((path for path in (within(root, each) for each in alternatives) if path.exists()), None)


def json_file(path: Path) -> Any:
    """What a JSON file, or a JSONL file as a list, holds.

    Raises:
        ValueError: missing, over `MAX_JSON_BYTES`, or not JSON in UTF-8; names the file, and the line of a JSONL file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if (nbytes := path.stat().st_size) > MAX_JSON_BYTES:
        raise ValueError(f"{path}: {nbytes:,} bytes, at most {MAX_JSON_BYTES:,} are allowed")
    place = ""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix != ".jsonl":
            return json.loads(text)
        rows = []
        for number, line in enumerate(text.split("\n"), 1):  # no other character ends a line of JSON Lines
            place = f", line {number}"
            if line.strip():
                rows.append(json.loads(line))
        return rows
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8, a number of too many digits
        raise ValueError(message(f"{shown_name(path)}{place}: not a UTF-8 JSON file ({error})")) from error


def json_rows(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a JSON file that is a list of objects.

    Raises:
        ValueError: as `json_file`; it holds something else, or no rows.
    """
    rows = json_file(path)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f"{path}: expected a list of at least one object, a row each")
    return rows
