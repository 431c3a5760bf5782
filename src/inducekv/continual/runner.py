"""Runs methods over a stream and measures them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from inducekv.continual.methods.base import Method
from inducekv.continual.metrics import AccuracyMatrix, Evaluate, average, empty_matrix, figure_or_none, forgetting, last
from inducekv.continual.stream import Experience, Stream
from inducekv.progress import SILENT, Labelled, Progress
from inducekv.ranks import Ranks

TOGETHER = 512
"""Questions of several tasks asked at once, at most: their pictures are all in memory, rendered. CHOICE."""


@dataclass
class MethodResult:
    """What one method did on a stream so far.

    Attributes:
        matrix: percent; NaN where a task was not asked.
        faithful: the same under the published graders where a task has one beside the fixed one, else None.
        deployed_of_task, training_of_task: bytes kept after each task.
        learn_of_task: wall-clock seconds of each task's learning.
        answer_of_task: wall-clock seconds that each task's test took when it was last asked.
        final_answers: to each task's questions, when last asked; after the stream, the final row.
        diagonal_answers: to each task's questions right after learning it; none where it was not asked then.
        scores: of `final_answers`, 0 to 1.
    """

    name: str
    title: str
    matrix: AccuracyMatrix
    faithful: AccuracyMatrix | None = None
    deployed_of_task: list[int] = field(default_factory=list)
    training_of_task: list[int] = field(default_factory=list)
    learn_of_task: list[float] = field(default_factory=list)
    answer_of_task: list[float] = field(default_factory=list)
    final_answers: list[list[str]] = field(default_factory=list)
    diagonal_answers: list[list[str]] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)

    @property
    def deployed_bytes(self) -> int:
        """After the last task learned; 0 before the first."""
        return self.deployed_of_task[-1] if self.deployed_of_task else 0

    @property
    def learn_seconds(self) -> float:
        """Spent in `learn` over the stream."""
        return sum(self.learn_of_task)

    @property
    def answer_seconds(self) -> float:
        """To answer every test question of the stream once."""
        return sum(self.answer_of_task)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able figures; cells that were not measured are null."""
        return {
            "matrix": _rows(self.matrix),
            **{
                name: None if value is None else round(value, 3)
                for name, value in (
                    ("avg", figure_or_none(average, self.matrix)),
                    ("last", figure_or_none(last, self.matrix)),
                    ("forgetting", figure_or_none(forgetting, self.matrix)),
                )
            },
            "deployed_bytes": self.deployed_bytes,
            "learn_seconds": round(self.learn_seconds, 3),
            "answer_seconds": round(self.answer_seconds, 3),
        }

    def to_state(self) -> dict[str, Any]:
        """Everything, as JSON, to go on from."""
        state = {name: getattr(self, name) for name in self.__dataclass_fields__}
        matrices = {name: None if state[name] is None else state[name].tolist() for name in ("matrix", "faithful")}
        return state | {
            name: None if rows is None else [[None if cell != cell else cell for cell in row] for row in rows]
            for name, rows in matrices.items()
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> MethodResult:
        """The inverse of `to_state`."""
        matrices = {
            name: None if state[name] is None else np.array(state[name], dtype=float) for name in ("matrix", "faithful")
        }
        return cls(**{**state, **matrices})


AfterTask = Callable[[int, Sequence[MethodResult]], None]


def run(
    stream: Stream,
    methods: Sequence[Method],
    progress: Progress = SILENT,
    after_task: AfterTask | None = None,
    *,
    ahead: bool = False,
    evaluate: Evaluate = "all",
    ranks: Ranks | None = None,
    resumed: Sequence[MethodResult] = (),
) -> list[MethodResult]:
    """Lets every method learn the stream task by task, and asks all test questions of the tasks so far after each.

    Methods go side by side (each learns task t before any learns t + 1), so that one may look at another's memory.
    Where the stream hides its task labels, methods get masked experiences, except those that say they see labels.

    Args:
        after_task: called with the task's number (from 0) and the results so far, matrices filled up to that row.
        ahead: also ask each task just before it is learned (forward transfer); not of methods that need its label.
        evaluate: cells that are asked. With `"diagonal+last"` reference rows, whose forgetting nobody asks for, answer
            the last row alone.
        ranks: this process among several that share the test questions out; None for one alone.
        resumed: results of an earlier, unfinished run, to whose state the methods have been brought back.

    Raises:
        ValueError: no methods, two of one name, or results of others to resume.
    """
    names = [method.name for method in methods]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"expected methods of different names (at least one), got {names}")
    results = list(resumed) or [_empty(stream, method) for method in methods]
    if [result.name for result in results] != names:
        raise ValueError(f"expected results of {names} to go on from, got {[result.name for result in results]}")
    for number in range(len(results[0].learn_of_task), len(stream)):
        experience = stream.experiences[number]
        for method, result in zip(methods, results, strict=True):
            labelled = Labelled(progress, f"{method.title}, task {number + 1} of {len(stream)}")
            seen = experience if method.sees_task_labels or stream.task_labels == "train" else experience.masked()
            started = time.perf_counter()
            method.learn(seen, labelled)
            result.learn_of_task.append(time.perf_counter() - started)
            result.deployed_of_task.append(method.deployed_bytes)
            result.training_of_task.append(method.training_bytes)
            asked = _asked(method, number, len(stream), evaluate, ahead)
            _ask_tasks(stream, number, asked, method, result, labelled, ranks or Ranks())
        if after_task is not None:
            after_task(number, results)
    return results


def _empty(stream: Stream, method: Method) -> MethodResult:
    both = any(experience.faithful_grader is not None for experience in stream.experiences)
    matrix = empty_matrix(len(stream))
    return MethodResult(method.name, method.title, matrix, empty_matrix(len(stream)) if both else None)


def _asked(method: Method, number: int, tasks: int, evaluate: Evaluate, ahead: bool) -> range:
    """The tasks whose questions are asked after task `number` of `tasks`."""
    final = number + 1 == tasks
    if method.settles and evaluate != "last":
        first, end = number, number + 1
    else:
        only_final = evaluate == "last" or (evaluate == "diagonal+last" and method.reference)
        first = 0 if final or evaluate == "all" else number
        end = number + 1 if final or not only_final else first
    return range(first, end + (ahead and evaluate == "all" and not final and not method.sees_task_labels))


def _ask_tasks(
    stream: Stream,
    number: int,
    asked: range,
    method: Method,
    result: MethodResult,
    progress: Progress,
    ranks: Ranks,
) -> None:
    """Fills row `number` of the matrices."""
    if method.settles and number:  # unchanged answers are not asked for again
        for matrix in (result.matrix, result.faithful):
            if matrix is not None:
                matrix[number, :number] = matrix[number - 1, :number]
    for task, (answers, seconds) in zip(asked, _ask(stream, asked, method, progress, ranks), strict=True):
        scores = _mark(stream, number, task, answers, result)
        if task <= number:
            _put(result.final_answers, task, answers)
            _put(result.scores, task, scores)
            _put(result.answer_of_task, task, seconds)
    result.diagonal_answers.append(result.final_answers[number] if number in asked else [])


def _ask(
    stream: Stream, tasks: Sequence[int], method: Method, progress: Progress, ranks: Ranks
) -> list[tuple[list[str], float]]:
    """Each task's answers and seconds.

    Short tests are asked together, so that they share batches and an adapter is attached once; seconds are then shared
    out by the number of questions. A method that is told labels is asked task by task.
    """
    asked: list[tuple[list[str], float]] = []
    for group in _groups(stream, tasks, 0 if method.sees_task_labels else TOGETHER):
        tests = [stream.experiences[task].test for task in group]
        label: dict[str, Any] = {"task": stream.experiences[group[0]].task} if method.sees_task_labels else {}
        ask = partial(method.answer, progress=progress, **label)
        started = time.perf_counter()
        answers = iter(ranks.shared_out([example for test in tests for example in test], ask))
        each = (time.perf_counter() - started) / sum(map(len, tests))
        asked += [(list(islice(answers, len(test))), each * len(test)) for test in tests]
    return asked


def _groups(stream: Stream, tasks: Sequence[int], most: int) -> list[list[int]]:
    """Tasks in their order, joined while their tests have at most so many questions."""
    groups: list[list[int]] = []
    held = most
    for task in tasks:
        held += len(stream.experiences[task].test)
        if held > most:
            groups.append([])
            held = len(stream.experiences[task].test)
        groups[-1].append(task)
    return groups


def _mark(stream: Stream, number: int, task: int, answers: list[str], result: MethodResult) -> list[float]:
    """Fills one task's cell of row `number`; returns the answers' scores."""
    experience = stream.experiences[task]
    scores = [float(score) for score in experience.grader.scores(answers, experience.test)]
    result.matrix[number, task] = 100 * float(np.mean(scores))
    if result.faithful is not None:
        result.faithful[number, task] = _faithful(experience, answers, result.matrix[number, task])
    return scores


def _faithful(experience: Experience, answers: list[str], fixed: float) -> float:
    if experience.faithful_grader is None:
        return fixed
    return 100 * float(np.mean(experience.faithful_grader.scores(answers, experience.test)))


def _put(values: list[Any], place: int, value: Any) -> None:
    values[place : place + 1] = [value]


def _rows(matrix: AccuracyMatrix) -> list[list[float | None]]:
    return [[None if np.isnan(cell) else round(float(cell), 3) for cell in row] for row in matrix]
