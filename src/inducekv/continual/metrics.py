"""Figures of a stream, all from the accuracy matrix.

`matrix[t, i]` is the accuracy in percent on task i after task t was learned. Cells with i <= t are measured; of those
above the diagonal `matrix[i - 1, i]` may be (a task asked just before it is learned), all others are NaN. Where fewer
cells were asked (`Evaluate`), a figure that needs the others raises `Unmeasured`. Names and formulas are those of the
literature on multimodal continual instruction tuning, where one figure often has several names: Last is MFN, AP and
ACC; Avg is MAA.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

AccuracyMatrix = Float[np.ndarray, "after_task on_task"]
Denominator = Literal["T-1", "T"]
Evaluate = Literal["all", "diagonal+last", "last"]
"""Cells that are asked: all on and below the diagonal; the diagonal and the last row, which give Last and BWT; or the
last row alone, which gives Last."""


class Unmeasured(ValueError):
    """A figure needs cells of the matrix that were not asked."""


def empty_matrix(tasks: int) -> AccuracyMatrix:
    """A matrix in which nothing has been measured yet (NaN)."""
    return np.full((tasks, tasks), np.nan)


def average(matrix: AccuracyMatrix, sizes: Sequence[int] | None = None) -> float:
    """Avg (MAA): the mean over t of the mean of row t up to task t; percent.

    Args:
        sizes: test questions of each task, to weight tasks by them within a row; None weights all alike.
    """
    _check(matrix, "all")
    weights = _weights(matrix, sizes)
    return float(np.mean([np.average(matrix[t, : t + 1], weights=weights[: t + 1]) for t in range(len(matrix))]))


def last(matrix: AccuracyMatrix, sizes: Sequence[int] | None = None) -> float:
    """Last (MFN, AP, ACC): the mean of the final row; percent. Weighted by `sizes` it is DGG's FAA."""
    _check(matrix, "last")
    return float(np.average(matrix[-1], weights=_weights(matrix, sizes)))


def just_learned(matrix: AccuracyMatrix, sizes: Sequence[int] | None = None) -> float:
    """MFT (New.ACC): the mean of the diagonal, each task right after it was learned; percent."""
    _check(matrix, "diagonal")
    return float(np.average(np.diag(matrix), weights=_weights(matrix, sizes)))


def forgetting(matrix: AccuracyMatrix) -> float:
    """Forgetting (AF, VQACL): mean over i < T of max over t < T of matrix[t, i] - matrix[T, i]; points, 0 for one task.

    It is at least -BWT(T-1): the best earlier score is at least the one right after learning. Of cells between the
    diagonal and the last row those that were asked count.
    """
    _check(matrix, "diagonal+last")
    tasks = len(matrix)
    if tasks == 1:
        return 0.0
    return float(np.mean([np.nanmax(matrix[i:-1, i]) - matrix[-1, i] for i in range(tasks - 1)]))


def backward_transfer(matrix: AccuracyMatrix, denominator: Denominator = "T-1") -> float:
    """BWT: the sum over i < T of matrix[T, i] - matrix[i, i], over T - 1 (MCITlib, MLLM-CL) or T (CoIN); points.

    The literature uses both denominators under one name; BWT(T-1) = (MFN - MFT) * T / (T - 1) and BWT(T) = MFN - MFT.
    0 for one task.

    Raises:
        ValueError: another denominator.
    """
    _check(matrix, "diagonal+last")
    if denominator not in ("T-1", "T"):
        raise ValueError(f"the denominator of BWT is 'T-1' or 'T', got {denominator!r}")
    tasks = len(matrix)
    if tasks == 1:
        return 0.0
    return float((matrix[-1] - np.diag(matrix)).sum() / (tasks if denominator == "T" else tasks - 1))


def forward_transfer(matrix: AccuracyMatrix, before: Float[np.ndarray, "on_task"]) -> float | None:
    """FWT: mean over i > 1 of matrix[i - 1, i] - before[i]: what earlier tasks bring to one not yet learned; points.

    Args:
        before: accuracy of the model that has learned nothing (the zero-shot row).

    Returns:
        None where tasks were not asked before they were learned, or there is only one.
    """
    _check(matrix)
    ahead = np.diag(matrix, 1)
    if not len(ahead) or np.isnan(ahead).any():
        return None
    return float(np.mean(ahead - before[1:]))


def figure_or_none(figure: Callable[..., float], matrix: AccuracyMatrix, *arguments: Any) -> float | None:
    """A figure, or None where cells that it needs were not asked."""
    try:
        return figure(matrix, *arguments)
    except Unmeasured:
        return None


def _weights(matrix: AccuracyMatrix, sizes: Sequence[int] | None) -> Float[np.ndarray, "tasks"]:
    if sizes is None:
        return np.ones(len(matrix))
    if len(sizes) != len(matrix) or min(sizes) < 1:
        raise ValueError(f"expected a test size of at least 1 for each of {len(matrix)} tasks, got {list(sizes)}")
    return np.asarray(sizes, dtype=float)


def _check(matrix: AccuracyMatrix, needed: str = "") -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"an accuracy matrix is square with a row for each task, got shape {matrix.shape}")
    row, column = np.indices(matrix.shape)
    cells = (needed == "all") & (column <= row)
    cells |= ("diagonal" in needed) & (column == row)
    cells |= ("last" in needed) & (row == len(matrix) - 1)
    if missing := int(np.isnan(matrix[cells]).sum()):
        raise Unmeasured(
            f"the accuracy matrix has {missing} unmeasured cells that the figure needs; finish the stream first, or "
            "ask for more cells"
        )
