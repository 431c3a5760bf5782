"""Runs methods over a stream and measures them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inducekv.continual.graders import accuracy
from inducekv.continual.methods.base import Method
from inducekv.continual.metrics import AccuracyMatrix, average, empty_matrix, forgetting, last
from inducekv.continual.stream import Stream
from inducekv.progress import SILENT, Progress


@dataclass
class MethodResult:
    """What one method did on a stream.

    Attributes:
        matrix: percent; NaN above the diagonal (a task not learned yet is not asked).
        learn_seconds: wall-clock seconds spent in `learn` over the stream.
        answer_seconds: wall-clock seconds to answer every test question of the stream once (the final row).
        deployed_bytes: after the last task.
    """

    name: str
    title: str
    matrix: AccuracyMatrix
    deployed_bytes: int = 0
    learn_seconds: float = 0.0
    answer_seconds: float = 0.0
    final_answers: list[list[str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able figures; cells that were not measured are null."""
        rows = [[None if np.isnan(cell) else round(float(cell), 3) for cell in row] for row in self.matrix]
        return {
            "matrix": rows,
            "avg": round(average(self.matrix), 3),
            "last": round(last(self.matrix), 3),
            "forgetting": round(forgetting(self.matrix), 3),
            "deployed_bytes": self.deployed_bytes,
            "learn_seconds": round(self.learn_seconds, 3),
            "answer_seconds": round(self.answer_seconds, 3),
        }


AfterTask = Callable[[int, Sequence[MethodResult]], None]


def run(
    stream: Stream, methods: Sequence[Method], progress: Progress = SILENT, after_task: AfterTask | None = None
) -> list[MethodResult]:
    """Lets every method learn the stream task by task, and asks all test questions of the tasks so far after each.

    Methods go side by side (each learns task t before any learns t + 1), so that one may look at another's memory.

    Args:
        after_task: called with the task's number (from 0) and the results so far, matrices filled up to that row.

    Raises:
        ValueError: no methods, or two of one name.
    """
    names = [method.name for method in methods]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"expected methods of different names (at least one), got {names}")
    results = [MethodResult(method.name, method.title, empty_matrix(len(stream))) for method in methods]
    for number, experience in enumerate(stream.experiences):
        for method, result in zip(methods, results, strict=True):
            started = time.perf_counter()
            method.learn(experience, progress)
            result.learn_seconds += time.perf_counter() - started
            _answer_tasks_so_far(stream, number, method, result, progress)
            result.deployed_bytes = method.deployed_bytes
        if after_task is not None:
            after_task(number, results)
    return results


def _answer_tasks_so_far(stream: Stream, number: int, method: Method, result: MethodResult, progress: Progress) -> None:
    first = 0 if method.learns else number  # unchanged answers are not asked for again
    if not method.learns and number:
        result.matrix[number, :number] = result.matrix[number - 1, :number]
    seconds = 0.0
    answers: list[list[str]] = []
    for task in range(first, number + 1):
        test = stream.experiences[task].test
        started = time.perf_counter()
        answers.append(method.answer(test, progress))
        seconds += time.perf_counter() - started
        result.matrix[number, task] = accuracy(answers[-1], [example.answer or "" for example in test])
    if method.learns:
        result.answer_seconds, result.final_answers = seconds, answers
    else:
        result.answer_seconds += seconds
        result.final_answers += answers
