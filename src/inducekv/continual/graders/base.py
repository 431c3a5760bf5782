"""What every grader offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from inducekv.examples import Example


@runtime_checkable
class Grader(Protocol):
    """Scores the answers to a task's test examples.

    Attributes:
        name: such as `"exact"`; a grader with a published fault comes as `"<name>/faithful"` and `"<name>/fixed"`.
    """

    @property
    def name(self) -> str: ...

    def scores(self, predictions: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        """Float64 `[examples]`, 0 to 1 (a grader of a whole corpus gives each example's share).

        Raises:
            ValueError: not one prediction for each example, or an example lacks what the grader compares with.
        """
        ...


def checked_lengths(predictions: Sequence[str], examples: Sequence[Example]) -> None:
    """Raises ValueError unless there is one prediction for each example."""
    if len(predictions) != len(examples):
        raise ValueError(f"expected one prediction for each of {len(examples)} examples, got {len(predictions)}")


@dataclass(frozen=True)
class PerAnswer:
    """A grader that scores each answer by itself.

    Attributes:
        score: from the prediction and its example to 0..1.
        note: what it does with what the published code gets wrong, or does wrong itself.
    """

    name: str
    score: Callable[[str, Example], float]
    note: str = ""

    def scores(self, predictions: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        checked_lengths(predictions, examples)
        pairs = zip(predictions, examples, strict=True)
        return np.array([float(self.score(prediction, example)) for prediction, example in pairs], dtype=np.float64)


def answer_of(example: Example) -> str:
    """The answer to compare with.

    Raises:
        ValueError: the example has none.
    """
    if example.answer is None:
        raise ValueError(f"example {example.identifier}: no answer to compare with")
    return example.answer
