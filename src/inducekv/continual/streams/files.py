"""Rows of published JSON files, and pictures that stay inside their folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 2 * 2**30
"""Most bytes a benchmark's JSON file may have (LLaVA-665K's has one gigabyte). CHOICE."""


def within(root: Path, relative: Any) -> Path:
    """A path below `root`, also after following symbolic links.

    Raises:
        ValueError: it leaves `root`, or is no path.
    """
    if not isinstance(relative, str) or not relative or "\0" in relative:
        raise ValueError(f"a path inside {root} must be text, got {relative!r:.80}")
    top = root.resolve()
    path = (top / relative).resolve()
    if not path.is_relative_to(top):
        raise ValueError(f"{relative}: leaves {root}; paths must stay inside it")
    return path


def first_existing(root: Path, alternatives: Sequence[str]) -> Path | None:
    """The first of the relative paths that is there; the same benchmark is handed out in several layouts."""
    return next((path for path in (within(root, each) for each in alternatives) if path.exists()), None)


def json_file(path: Path) -> Any:
    """What a JSON file, or a JSONL file as a list, holds.

    Raises:
        ValueError: missing, over `MAX_JSON_BYTES`, or not JSON in UTF-8; names the file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if (nbytes := path.stat().st_size) > MAX_JSON_BYTES:
        raise ValueError(f"{path}: {nbytes:,} bytes, at most {MAX_JSON_BYTES:,} are allowed")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a UTF-8 JSON file ({error})") from error


def json_rows(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a JSON file that is a list of objects.

    Raises:
        ValueError: as `json_file`; it holds something else, or no rows.
    """
    rows = json_file(path)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f"{path}: expected a list of at least one object, a row each")
    return rows
