"""What is believed of a result's file: every field within its limits, predictions unpacked within theirs."""

from __future__ import annotations

import base64
import binascii
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from inducekv.continual.metrics import AccuracyMatrix, empty_matrix
from inducekv.error_text import shown

FORMAT = "inducekv-bench-result"
VERSION = 1
MAX_UNPACKED_BYTES = 256 * 2**20
MAX_TASKS = 1_000
MAX_TEXT = 100_000
MAX_NUMBER = 2**62


class ResultError(ValueError):
    """A result's file cannot be believed; says which and why."""


def pack(value: Any) -> dict[str, str]:
    """A JSON value compressed into a JSON string (zlib, then base64)."""
    data = zlib.compress(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(), 9)
    return {"encoding": "zlib+base64", "data": base64.b64encode(data).decode()}


def unpack(packed: Mapping[str, str]) -> Any:
    """The inverse of `pack`.

    Raises:
        ResultError: damaged, or over `MAX_UNPACKED_BYTES` when unpacked.
    """
    if packed["encoding"] != "zlib+base64":
        raise ResultError(f"predictions are packed as {shown(packed['encoding'])}; only 'zlib+base64' can be read")
    try:
        opener = zlib.decompressobj()
        data = opener.decompress(base64.b64decode(packed["data"], validate=True), MAX_UNPACKED_BYTES)
    except (binascii.Error, zlib.error) as error:
        raise ResultError(f"predictions are damaged ({error})") from error
    if not opener.eof:
        raise ResultError(f"predictions are cut off or take over {MAX_UNPACKED_BYTES:,} bytes")
    return json.loads(data)


def checked_fields(content: Any) -> dict[str, Any]:
    """Every field of a `Result` from the object of its file, each within what it may be.

    Raises:
        ResultError: it is no finished result, or a value lies outside what it may be.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ResultError(f"not a result of the bench (format {FORMAT!r})")
    if content["version"] != VERSION:
        raise ResultError(f"format version {shown(content['version'])}; this release reads {VERSION}")
    if content["complete"] is not True:
        raise ResultError("the run is not complete")
    tasks = _texts(content["tasks"], "tasks", None)
    if not 1 <= len(tasks) <= MAX_TASKS or len(set(tasks)) != len(tasks):
        raise ResultError(f"expected 1 to {MAX_TASKS} tasks of different names, got {len(tasks)}")
    count = len(tasks)
    sizes = [int(size) for size in _numbers(content["sizes"], "sizes", count, 1, 10**8, whole=True)]
    packed = unpack(content["predictions"])
    answers = {
        "final": _blocks(packed["final"], "final", sizes, _texts),
        "diagonal": _blocks(packed["diagonal"], "diagonal", sizes, lambda v, n, c: v if v == [] else _texts(v, n, c)),
    }
    scores = _blocks(packed["scores"], "scores", sizes, lambda v, n, c: _numbers(v, n, c, 0, 1))
    clusters = _blocks(packed["clusters"], "clusters", sizes, lambda v, n, c: _numbers(v, n, c, 0, 10**9, whole=True))
    for name in ("config", "settings", "versions"):
        if not isinstance(content[name], dict):
            raise ResultError(f"{name} must be an object")
    if type(content["reference"]) is not bool:
        raise ResultError("reference must be true or false")
    texts = {name: _texts([content[name]], name, 1)[0] for name in ("stream", "method", "title", "questions")}
    numbers = {name: _numbers([content[name]], name, 1, 0, MAX_NUMBER, whole=True)[0] for name in ("budget", "seed")}
    faithful, also = content["faithful"], content.get("also", {})
    if not isinstance(also, dict) or len(also) > 100:
        raise ResultError("also must be an object of at most 100 graders")
    for values in also.values():
        if not isinstance(values, list) or len(values) != count:
            raise ResultError(f"also must hold lists of {count}")
        given = [value for value in values if value is not None]
        _numbers(given, "also", len(given), 0, 100)
    kept = ("deployed_bytes", "training_bytes")
    seconds = ("learn_seconds", "answer_seconds")
    return {
        **texts,
        **numbers,
        **answers,
        **{name: content[name] for name in ("reference", "config", "settings", "versions")},
        **{name: _numbers(content[name], name, count, 0, MAX_NUMBER, whole=True) for name in kept},
        **{name: _numbers(content[name], name, count, 0, 1e9) for name in seconds},
        **{name: _sizes(content[name], name) for name in ("ledger", "peak_memory")},
        "tasks": tasks,
        "sizes": sizes,
        "graders": _texts(content["graders"], "graders", count),
        "matrix": _matrix(content["matrix"], "matrix", count),
        "faithful": None if faithful is None else _matrix(faithful, "faithful", count),
        "also": also,
        "scores": scores,
        "clusters": clusters,
    }


def _texts(values: Any, name: str, count: int | None) -> list[str]:
    if not isinstance(values, list) or (count is not None and len(values) != count):
        raise ResultError(f"{name} must be a list of {count if count is not None else 'texts'}")
    if not all(isinstance(value, str) and len(value) <= MAX_TEXT for value in values):
        raise ResultError(f"{name} must be texts of at most {MAX_TEXT:,} characters")
    return values


def _numbers(
    values: Any, name: str, count: int, low: int | float, high: int | float, *, whole: bool = False
) -> list[Any]:
    if not isinstance(values, list) or len(values) != count:
        raise ResultError(f"{name} must be a list of {count}")
    for value in values:
        right = type(value) is int or (type(value) is float and not whole and math.isfinite(value))
        if not right or not low <= value <= high:
            kind = "whole numbers" if whole else "numbers"
            raise ResultError(f"{name} must be {kind} from {low:,} to {high:,}, got {shown(value)}")
    return values


def _sizes(values: Any, name: str) -> dict[str, int]:
    if not isinstance(values, dict) or len(values) > 100:
        raise ResultError(f"{name} must be an object of byte counts")
    _numbers(list(values.values()), name, len(values), 0, MAX_NUMBER, whole=True)
    return values


def _blocks(values: Any, name: str, sizes: Sequence[int], read: Any) -> list[Any]:
    if not isinstance(values, list) or len(values) != len(sizes):
        raise ResultError(f"{name} must have a list for each of {len(sizes)} tasks")
    return [read(block, name, size) for block, size in zip(values, sizes, strict=True)]


def _matrix(rows: Any, name: str, count: int) -> AccuracyMatrix:
    if not isinstance(rows, list) or len(rows) != count:
        raise ResultError(f"{name} must have {count} rows")
    matrix = empty_matrix(count)
    for t, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != count:
            raise ResultError(f"{name} must have {count} cells in every row")
        measured = [i for i, cell in enumerate(row) if cell is not None]
        if t == count - 1 and len(measured) < count:
            raise ResultError(f"{name} has unmeasured cells in its last row")
        matrix[t, measured] = _numbers([row[i] for i in measured], name, len(measured), 0, 100)
    return matrix
