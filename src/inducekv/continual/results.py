"""Results as data: one JSON file for each (stream, method, budget, seed), and the checks before one is believed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inducekv.atomic import write_atomically
from inducekv.continual import metrics
from inducekv.continual.metrics import AccuracyMatrix
from inducekv.continual.result_checks import FORMAT, VERSION, ResultError, checked_fields, pack

MAX_FILE_BYTES = 64 * 2**20
MAX_FILES = 100_000
WORK = ".work"
"""Folder of unfinished runs inside a folder of results."""

Texts = list[list[str]]


@dataclass
class Result:
    """What one method did on one stream under one budget with one seed.

    Attributes:
        stream, method, title, reference, budget, seed: which run; `title` and `reference` as the table of methods has
            them.
        tasks, sizes, graders: of each task its name, test questions and grader.
        questions: digest of the test questions and their answers in order; equal where results can be paired.
        matrix: `[tasks, tasks]` percent; above the diagonal at most the first off-diagonal is measured, and on and
            below it what `settings["evaluate"]` says (the last row always).
        faithful: the same under the published graders where these differ, else None.
        deployed_bytes, training_bytes: kept after each task, as measured.
        ledger: `deployed` and `training` bytes by formula after the last task.
        learn_seconds: wall-clock of each task's learning.
        answer_seconds: wall-clock of answering each task's test questions once, at the end.
        peak_memory: `rss` bytes of the process while this method ran (with its partner, where it shares one's memory),
            and `cuda` bytes where a GPU was used.
        config: how the method was set (`Method.describe`).
        settings: of the run: model, limit, max_new_tokens, root ...
        versions: of the packages that matter; `commit` of the project where it ran from a checkout; `embeddings`: the
            beginning of the hash of the model's input embeddings.
        final, diagonal: answers to each task's questions after the last task, and right after learning the task (no
            answers where it was not asked then).
        scores: of each question in the final row, 0 to 1.
        clusters: number of each question's picture, for standard errors.
        also: by the name of a further grader, each task's percent in the final row; None for a task without it.
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
    also: dict[str, list[float | None]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> tuple[str, str, int, int]:
        """Stream, method, budget, seed: no two results of a folder share it."""
        return self.stream, self.method, self.budget, self.seed

    def figures(self, zero_shot: Result | None = None) -> dict[str, float | None]:
        """Every figure of the matrix by its name in the literature, None where cells that it needs were not asked.

        FWT needs the zero-shot row of the same stream.
        """
        of, matrix = metrics.figure_or_none, self.matrix
        before = np.diag(zero_shot.matrix) if zero_shot and zero_shot.questions == self.questions else None
        return {
            "last": of(metrics.last, matrix),
            "avg": of(metrics.average, matrix),
            "mft": of(metrics.just_learned, matrix),
            "forgetting": of(metrics.forgetting, matrix),
            "bwt": of(metrics.backward_transfer, matrix),
            "bwt_over_t": of(metrics.backward_transfer, matrix, "T"),
            "fwt": None if before is None else metrics.forward_transfer(matrix, before),
            "last_weighted": of(metrics.last, matrix, self.sizes),
            "avg_weighted": of(metrics.average, matrix, self.sizes),
            "mft_weighted": of(metrics.just_learned, matrix, self.sizes),
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
            **{name: None if matrix is None else _rows(matrix) for name, matrix in rows.items()},
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
            return cls(**checked_fields(content))
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


def _rows(matrix: AccuracyMatrix) -> list[list[float | None]]:
    return [[None if np.isnan(cell) else round(float(cell), 4) for cell in row] for row in matrix]


def _no_constant(name: str) -> Any:
    raise ResultError(f"holds {name}, which is no JSON number")


def group(results: Iterable[Result], *keys: str) -> dict[tuple[Any, ...], list[Result]]:
    """Results by some of their attributes, in the order in which they first occur."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(getattr(result, key) for key in keys), []).append(result)
    return groups
