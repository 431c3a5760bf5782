"""Herding: each task keeps the entries whose running mean follows the mean of its retrieval keys."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.config import InduceKVConfig
from inducekv.progress import SILENT, Progress
from inducekv.selection.problem import Selection, SelectionProblem, chosen_only
from inducekv.selection.shares import in_shares
from inducekv.selection.turns import take_turns

DECIMALS = 12
"""Of distances that are compared: those that differ by less are the same, on every machine."""


def herding(
    problem: SelectionProblem,
    config: InduceKVConfig,
    generator: torch.Generator,
    progress: Progress = SILENT,
) -> Selection:
    """Herding of retrieval keys (Welling 2009; as in iCaRL, Rebuffi et al. 2017, algorithm 4), tasks taking turns.

    CHOICE: tasks, not classes, are the groups, since an answer may be free text; at each turn the task that has spent
    the fewest bytes adds its next entry.
    """
    return chosen_only(problem, herd(problem.keys, problem.costs.tolist(), problem.total, problem.tasks))


def herd(
    keys: Float[Tensor, "entries key_dim"], costs: Sequence[int | float], total: int | float, tasks: Sequence[str]
) -> list[int]:
    """Places of the entries that herding keeps, in the order in which they are added.

    Args:
        keys: retrieval keys.
        costs: bytes each entry would take.
        total: bytes there are.
        tasks: the task of each entry.
    """
    queues = {}
    for task in dict.fromkeys(tasks):
        members = [index for index, name in enumerate(tasks) if name == task]
        queues[task] = [members[place] for place in in_shares(keys[members], herding_order)]
    return take_turns(queues, costs, total)


def herding_order(keys: Float[Tensor, "entries key_dim"]) -> Tensor:
    """Indices `[entries]` whose every prefix has a mean key as near to the mean of all as one more step allows.

    Of entries as near as each other the first is taken.
    """
    keys = keys.double()
    squares, mean, total = keys.square().sum(1), keys.mean(0), torch.zeros_like(keys[0])
    free = torch.ones(len(keys), dtype=torch.bool)
    order = []
    for taken in range(1, len(keys) + 1):
        gap = mean - total / taken  # |gap - key / taken|^2 without |gap|^2, which is the same for all keys
        distance = (squares / taken**2 - 2 / taken * (keys @ gap)).round(decimals=DECIMALS)
        index = int(torch.where(free, distance, torch.inf).argmin())
        order.append(index)
        free[index] = False
        total = total + keys[index]
    return torch.tensor(order, dtype=torch.long)
