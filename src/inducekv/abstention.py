"""When to read nothing: a least similarity for every task, from what its own questions have to each other."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.entry import Entry
from inducekv.key_space import KeySpace, KeySpaceName
from inducekv.selection.questions import Question

LOW_QUANTILE = 0.05
"""The similarity that this part of a task's own questions stays below. CHOICE."""
MARGIN = 2.0
"""How much further below, in units of the distance from the median to that quantile. CHOICE."""


def thresholds(
    entries: Sequence[Entry],
    keys: Float[Tensor, "entries key_dim"],
    questions: Sequence[Question],
    space: KeySpaceName,
) -> dict[str, float]:
    """Least similarity to a task's entries below which a question is none of that task's (CHOICE).

    A task's own questions are compared with its committed entries, leaving out the entry a question became: their best
    similarities show how near a question of the task usually is. The threshold lies twice as far below their low
    quantile as that lies below the median, so that a question of the task is rarely refused. A task without such
    questions has no threshold.

    Args:
        entries: committed.
        keys: `[entries, key_dim]` of the entries.
        questions: of any task, with keys.
        space: as in retrieval.
    """
    limits = {}
    compared = KeySpace.of(keys, space)
    for task in dict.fromkeys(entry.task for entry in entries):
        asked = [question for question in questions if question.task == task]
        if not asked:
            continue
        near = compared.similarities(torch.stack([question.key for question in asked]), keys)
        foreign = [[entry.task != task or entry.id == q.entry for entry in entries] for q in asked]
        best = near.masked_fill(torch.tensor(foreign), -torch.inf).amax(1)
        best = best[best > -torch.inf].double()
        if len(best):
            low, middle = best.quantile(LOW_QUANTILE), best.median()
            limits[task] = float(low - MARGIN * (middle - low).clamp_min(0))
    return limits
