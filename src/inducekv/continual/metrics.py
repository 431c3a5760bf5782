"""Figures of a stream, all from the accuracy matrix.

`matrix[t, i]` is the accuracy in percent on task i after task t was learned; cells with i > t are NaN (not measured).
Names and formulas are those of the literature on multimodal continual instruction tuning (HiDe-LLaVA's "Avg" and
"Last", VQACL's forgetting).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

AccuracyMatrix = Float[np.ndarray, "after_task on_task"]


def empty_matrix(tasks: int) -> AccuracyMatrix:
    """A matrix in which nothing has been measured yet (NaN)."""
    return np.full((tasks, tasks), np.nan)


def average(matrix: AccuracyMatrix) -> float:
    """Avg (MAA): the mean over t of the mean of row t up to task t; percent."""
    _check(matrix)
    return float(np.mean([matrix[t, : t + 1].mean() for t in range(len(matrix))]))


def last(matrix: AccuracyMatrix) -> float:
    """Last (MFN, AP): the mean of the final row; percent."""
    _check(matrix)
    return float(matrix[-1].mean())


def forgetting(matrix: AccuracyMatrix) -> float:
    """Forgetting (VQACL): mean over i < T of max over t < T of matrix[t, i] - matrix[T, i]; points, 0 for one task."""
    _check(matrix)
    tasks = len(matrix)
    if tasks == 1:
        return 0.0
    return float(np.mean([matrix[i:-1, i].max() - matrix[-1, i] for i in range(tasks - 1)]))


def backward_transfer(matrix: AccuracyMatrix) -> float:
    """BWT with denominator T - 1: mean over i < T of matrix[T, i] - matrix[i, i]; points, 0 for one task."""
    _check(matrix)
    tasks = len(matrix)
    if tasks == 1:
        return 0.0
    return float(np.mean([matrix[-1, i] - matrix[i, i] for i in range(tasks - 1)]))


def _check(matrix: AccuracyMatrix) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"an accuracy matrix is square with a row for each task, got shape {matrix.shape}")
    if np.isnan(matrix[np.tril_indices(len(matrix))]).any():
        raise ValueError("the accuracy matrix has unmeasured cells on or below its diagonal; finish the stream first")
