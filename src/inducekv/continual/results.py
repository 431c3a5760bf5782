"""Results as data: one JSON file for each (stream, method, budget, seed), and the checks before one is believed."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inducekv.atomic import write_atomically
from inducekv.continual import metrics
from inducekv.continual.metrics import AccuracyMatrix

FORMAT = "inducekv-bench-result"
VERSION = 1
MAX_FILE_BYTES = 64 * 2**20
MAX_UNPACKED_BYTES = 256 * 2**20
MAX_FILES = 100_000
MAX_TASKS = 1_000
MAX_TEXT = 100_000
WORK = ".work"
"""Folder of unfinished runs inside a folder of results."""

Texts = list[list[str]]


class ResultError(ValueError):
    """A result's file cannot be believed; says which and why."""


@dataclass
class Result:
    """What one method did on one stream under one budget with one seed.

    Attributes:
        stream, method, title, reference, budget, seed: which run; `title` and `reference` as the table of methods has
            them.
        tasks, sizes, graders: of each task its name, test questions and grader.
        questions: digest of the test questions and their answers in order; equal where results can be paired.
        matrix: `[tasks, tasks]` percent; above the diagonal at most the first off-diagonal is measured.
        faithful: the same under the published graders where these differ, else None.
        deployed_bytes, training_bytes: kept after each task, as measured.
        ledger: `deployed` and `training` bytes by formula after the last task.
        learn_seconds: wall-clock of each task's learning.
        answer_seconds: wall-clock of answering each task's test questions once, at the end.
        peak_memory: `rss` bytes of the process while this method ran (with its partner, where it shares one's memory),
            and `cuda` bytes where a GPU was used.
        config: how the method was set (`Method.describe`).
        settings: of the run: model, limit, max_new_tokens, root ...
        versions: of the packages that matter; `commit` of the project where it ran from a checkout.
        final, diagonal: answers to each task's questions after the last task, and right after learning the task.
        scores: of each question in the final row, 0 to 1.
        clusters: number of each question's picture, for standard errors.
    """

    stream: str
    method: str
    title: str
    reference: bool
    budget: int
    seed: int
    tasks: list[str]
    sizes: list[int]
    graders: list[str]
    questions: str
    matrix: AccuracyMatrix
    deployed_bytes: list[int]
    training_bytes: list[int]
    ledger: dict[str, int]
    learn_seconds: list[float]
    answer_seconds: list[float]
    peak_memory: dict[str, int]
    final: Texts
    diagonal: Texts
    scores: list[list[float]]
    clusters: list[list[int]]
    faithful: AccuracyMatrix | None = None
    config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> tuple[str, str, int, int]:
        """Stream, method, budget, seed: no two results of a folder share it."""
        return self.stream, self.method, self.budget, self.seed

    def figures(self, zero_shot: Result | None = None) -> dict[str, float | None]:
        """Every figure of the matrix, by its name in the literature; FWT needs the zero-shot row of the same stream."""
        before = np.diag(zero_shot.matrix) if zero_shot and zero_shot.questions == self.questions else None
        return {
            "last": metrics.last(self.matrix),
            "avg": metrics.average(self.matrix),
            "mft": metrics.just_learned(self.matrix),
            "forgetting": metrics.forgetting(self.matrix),
            "bwt": metrics.backward_transfer(self.matrix),
            "bwt_over_t": metrics.backward_transfer(self.matrix, "T"),
            "fwt": None if before is None else metrics.forward_transfer(self.matrix, before),
            "last_weighted": metrics.last(self.matrix, self.sizes),
            "avg_weighted": metrics.average(self.matrix, self.sizes),
            "mft_weighted": metrics.just_learned(self.matrix, self.sizes),
            "last_faithful": None if self.faithful is None else metrics.last(self.faithful),
        }

    def to_json(self) -> dict[str, Any]:
        """The file's object."""
        rows = {"matrix": self.matrix, "faithful": self.faithful}
        packed = {"final": self.final, "diagonal": self.diagonal, "scores": self.scores, "clusters": self.clusters}
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in {*rows, *packed}}
        return {
            "format": FORMAT,
            "version": VERSION,
            "complete": True,
            **plain,
            **{name: None if rows[name] is None else _rows(rows[name]) for name in rows},
            "figures": {name: None if v is None else round(v, 4) for name, v in self.figures().items()},
            "predictions": pack(packed),
        }

    @classmethod
    def from_json(cls, content: Any) -> Result:
        """Checks and takes the file's object.

        Raises:
            ResultError: it is no finished result, or a value lies outside what it may be.
        """
        try:
            return _checked(cls, content)
        except (KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"a field is missing or of the wrong kind ({error})") from error
        except RecursionError as error:
            raise ResultError("nested too deeply") from error


def budget_name(budget: int) -> str:
    """A budget as it stands in a file's name, exact: `262144 -> "256KiB"`, `1000 -> "1000B"`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if budget and budget % unit == 0:
            return f"{budget // unit}{name}"
    return f"{budget}B"


def result_path(folder: Path, stream: str, method: str, budget: int, seed: int) -> Path:
    """Where a result lies: `<folder>/<stream>/<method>/<budget>-<seed>.json`."""
    return folder / safe_path(stream) / safe_path(method) / f"{budget_name(budget)}-{seed}.json"


def safe_path(name: str) -> Path:
    """A relative path from a name such as "embedded/task"; whatever could lead elsewhere becomes an underscore."""
    parts = [re.sub(r"[^\w.+-]", "_", part).lstrip(".") or "_" for part in name.split("/")]
    return Path(*parts)


def write_result(folder: Path, result: Result) -> Path:
    """Writes a result whole or not at all and returns its path.

    Raises:
        OSError: the folder cannot be written.
    """
    path = result_path(folder, *result.run)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(result.to_json(), indent=1, ensure_ascii=False) + "\n").encode())
    return path


def read_result(path: Path) -> Result:
    """Reads one file.

    Raises:
        ResultError: the file is missing, too large, damaged or no finished result; names it.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ResultError(f"{path.stat().st_size:,} bytes, at most {MAX_FILE_BYTES:,} are allowed")
        return Result.from_json(json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant))
    except (OSError, ValueError, RecursionError) as error:
        raise ResultError(f"result {path}: {error}; delete it and run again") from error


def read_results(folder: Path) -> list[Result]:
    """Every result below a folder, in the order of their paths.

    Raises:
        ResultError: there is none, a file cannot be believed, or two tell of the same run.
    """
    if not folder.is_dir():
        raise ResultError(f"no folder of results at {folder}; make one with `inducekv bench run`")
    paths = sorted(path for path in folder.rglob("*.json") if WORK not in path.relative_to(folder).parts)
    if not paths:
        raise ResultError(f"no results (*.json) in {folder}; make some with `inducekv bench run`")
    if len(paths) > MAX_FILES:
        raise ResultError(f"{len(paths):,} files in {folder}, at most {MAX_FILES:,} are read")
    results: dict[tuple[str, str, int, int], Result] = {}
    for path in paths:
        result = read_result(path)
        if result.run in results:
            raise ResultError(f"result {path}: a second file about {result.run}; delete one of them")
        results[result.run] = result
    return list(results.values())


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
        raise ResultError(f"predictions are packed as {packed['encoding']!r}; only 'zlib+base64' can be read")
    try:
        opener = zlib.decompressobj()
        data = opener.decompress(base64.b64decode(packed["data"], validate=True), MAX_UNPACKED_BYTES)
    except (binascii.Error, zlib.error) as error:
        raise ResultError(f"predictions are damaged ({error})") from error
    if not opener.eof:
        raise ResultError(f"predictions are cut off or take over {MAX_UNPACKED_BYTES:,} bytes")
    return json.loads(data)


def _rows(matrix: AccuracyMatrix) -> list[list[float | None]]:
    return [[None if np.isnan(cell) else round(float(cell), 4) for cell in row] for row in matrix]


def _no_constant(name: str) -> Any:
    raise ResultError(f"holds {name}, which is no JSON number")


def _checked(cls: type[Result], content: Any) -> Result:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ResultError(f"not a result of the bench (format {FORMAT!r})")
    if content["version"] != VERSION:
        raise ResultError(f"format version {content['version']!r}; this release reads {VERSION}")
    if content["complete"] is not True:
        raise ResultError("the run is not complete")
    tasks = _texts(content["tasks"], "tasks", None)
    if not 1 <= len(tasks) <= MAX_TASKS or len(set(tasks)) != len(tasks):
        raise ResultError(f"expected 1 to {MAX_TASKS} tasks of different names, got {len(tasks)}")
    count = len(tasks)
    sizes = [int(size) for size in _numbers(content["sizes"], "sizes", count, 1, 10**8, whole=True)]
    packed = unpack(content["predictions"])
    answers = {name: _blocks(packed[name], name, sizes, _texts) for name in ("final", "diagonal")}
    scores = _blocks(packed["scores"], "scores", sizes, lambda v, n, c: _numbers(v, n, c, 0, 1))
    clusters = _blocks(packed["clusters"], "clusters", sizes, lambda v, n, c: _numbers(v, n, c, 0, 10**9, whole=True))
    for name in ("config", "settings", "versions"):
        if not isinstance(content[name], dict):
            raise ResultError(f"{name} must be an object")
    if type(content["reference"]) is not bool:
        raise ResultError("reference must be true or false")
    texts = {
        name: _texts([content[name]], name, 1)[0] for name in ("stream", "method", "title", "questions")
    }
    budget, seed = (int(_numbers([content[n]], n, 1, 0, 2**62, whole=True)[0]) for n in ("budget", "seed"))
    faithful = content["faithful"]
    return cls(
        **texts,
        reference=content["reference"],
        budget=budget,
        seed=seed,
        tasks=tasks,
        sizes=sizes,
        graders=_texts(content["graders"], "graders", count),
        matrix=_matrix(content["matrix"], "matrix", count),
        faithful=None if faithful is None else _matrix(faithful, "faithful", count),
        deployed_bytes=_numbers(content["deployed_bytes"], "deployed_bytes", count, 0, 2**62, whole=True),
        training_bytes=_numbers(content["training_bytes"], "training_bytes", count, 0, 2**62, whole=True),
        ledger=_sizes(content["ledger"], "ledger"),
        learn_seconds=_numbers(content["learn_seconds"], "learn_seconds", count, 0, 1e9),
        answer_seconds=_numbers(content["answer_seconds"], "answer_seconds", count, 0, 1e9),
        peak_memory=_sizes(content["peak_memory"], "peak_memory"),
        **answers,
        scores=scores,
        clusters=clusters,
        **{name: content[name] for name in ("config", "settings", "versions")},
    )


def _texts(values: Any, name: str, count: int | None) -> list[str]:
    if not isinstance(values, list) or (count is not None and len(values) != count):
        raise ResultError(f"{name} must be a list of {count if count is not None else 'texts'}")
    if not all(isinstance(value, str) and len(value) <= MAX_TEXT for value in values):
        raise ResultError(f"{name} must be texts of at most {MAX_TEXT:,} characters")
    return values


def _numbers(
    values: Any, name: str, count: int, low: float, high: float, *, whole: bool = False
) -> list[Any]:
    if not isinstance(values, list) or len(values) != count:
        raise ResultError(f"{name} must be a list of {count}")
    for value in values:
        right = type(value) is int or (type(value) is float and not whole and math.isfinite(value))
        if not right or not low <= value <= high:
            kind = "whole numbers" if whole else "numbers"
            raise ResultError(f"{name} must be {kind} from {low:,} to {high:,}, got {value!r}")
    return values


def _sizes(values: Any, name: str) -> dict[str, int]:
    if not isinstance(values, dict) or len(values) > 100:
        raise ResultError(f"{name} must be an object of byte counts")
    _numbers(list(values.values()), name, len(values), 0, 2**62, whole=True)
    return values


def _blocks(values: Any, name: str, sizes: Sequence[int], read: Any) -> list[Any]:
    if not isinstance(values, list) or len(values) != len(sizes):
        raise ResultError(f"{name} must have a list for each of {len(sizes)} tasks")
    return [read(block, name, size) for block, size in zip(values, sizes, strict=True)]


def _matrix(rows: Any, name: str, count: int) -> AccuracyMatrix:
    if not isinstance(rows, list) or len(rows) != count:
        raise ResultError(f"{name} must have {count} rows")
    matrix = metrics.empty_matrix(count)
    for t, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != count:
            raise ResultError(f"{name} must have {count} cells in every row")
        measured = [i for i, cell in enumerate(row) if cell is not None]
        if not set(range(t + 1)) <= set(measured):
            raise ResultError(f"{name} has unmeasured cells on or below its diagonal")
        matrix[t, measured] = _numbers([row[i] for i in measured], name, len(measured), 0, 100)
    return matrix


def group(results: Iterable[Result], *keys: str) -> dict[tuple[Any, ...], list[Result]]:
    """Results by some of their attributes, in the order in which they first occur."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(getattr(result, key) for key in keys), []).append(result)
    return groups
