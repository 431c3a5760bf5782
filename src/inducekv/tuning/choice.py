"""Which of the measured points to take: one that is better by more than chance, and else the one there was."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from inducekv.tuning.measure import Measured

CERTAINTY = 2.0
"""Standard errors by which a point must be better than the start, over the same questions. CHOICE."""
TIED = 1.0
"""Standard errors within which two points are as good as each other, so that the smaller entries win. CHOICE."""
FEW = 30
"""Fewer questions than this rarely tell two ways of storing apart, which is said. CHOICE."""


def gain_over(one: Measured, other: Measured) -> tuple[float, float]:
    """How much more a point is worth than another, and the standard error of that over paired questions.

    The error is at least what one answer more or less would change: that few questions agree is no certainty.
    """
    differences = [a - b for a, b in zip(one.worths, other.worths, strict=True)]
    count = len(differences)
    spread = statistics.stdev(differences) / math.sqrt(count) if count > 1 else math.inf
    return statistics.fmean(differences), max(spread, 0.5 / count)


def choose(measured: Sequence[Measured], start: Measured | None) -> tuple[Measured, list[str]]:
    """The point to store by, and sentences for a person on how sure that is.

    The start stays unless others are better than it by `CERTAINTY` standard errors; of these, the one with the smallest
    entries that is as good as the best (CHOICE). Where the start holds not one entry, all are compared with the best.

    Args:
        measured: points measured on all of the same questions, at least one.
        start: the configuration's own point, if it was measured.
    """
    notes = []
    questions = len(measured[0].nll)
    if questions < FEW:
        notes.append(
            f"{questions} questions are too few to tell ways of storing apart; {3 * FEW} examples give {FEW}, a third "
            "of them being asked"
        )
    better = list(measured)
    if start is not None:
        better = [found for found in measured if _surely(found, start, CERTAINTY)]
        if not better:
            notes.append(
                f"nothing that was measured is better than the start by {CERTAINTY:g} standard errors over "
                f"{questions} questions: the start stays"
            )
            return start, notes
    best = max(better, key=lambda found: (found.worth, -found.entry_nbytes))
    as_good = [found for found in better if not _surely(best, found, TIED)]
    return min(as_good, key=lambda found: (found.entry_nbytes, -found.worth)), notes


def _surely(one: Measured, other: Measured, errors: float) -> bool:
    gain, error = gain_over(one, other)
    return one.point != other.point and gain > errors * error
