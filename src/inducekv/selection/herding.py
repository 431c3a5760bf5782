"""Herding: each task keeps the entries whose running mean follows the mean of its retrieval keys."""

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.config import InduceKVConfig
from inducekv.progress import SILENT, Progress
from inducekv.selection.problem import Selection, SelectionProblem, chosen_only


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
    queues = {}
    for task in dict.fromkeys(problem.tasks):
        members = torch.tensor([index for index, name in enumerate(problem.tasks) if name == task])
        queues[task] = members[herding_order(problem.keys[members])].tolist()
    costs, left, chosen = problem.costs.tolist(), problem.total, []
    spent = dict.fromkeys(queues, 0)
    while any(queues.values()):
        task = min((name for name, queue in queues.items() if queue), key=lambda name: spent[name])
        index = queues[task].pop(0)
        if costs[index] <= left:
            chosen.append(index)
            left -= costs[index]
            spent[task] += costs[index]
    return chosen_only(problem, chosen)


def herding_order(keys: Float[Tensor, "entries key_dim"]) -> Tensor:
    """Indices `[entries]` whose every prefix has a mean key as near to the mean of all as one more step allows."""
    keys = keys.double()
    mean, total = keys.mean(0), torch.zeros_like(keys[0])
    free = torch.ones(len(keys), dtype=torch.bool)
    order = []
    for taken in range(1, len(keys) + 1):
        distance = (mean - (total + keys) / taken).norm(dim=1)
        index = int(torch.where(free, distance, torch.inf).argmin())
        order.append(index)
        free[index] = False
        total = total + keys[index]
    return torch.tensor(order, dtype=torch.long)
