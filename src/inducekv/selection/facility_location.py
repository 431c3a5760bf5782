"""Facility location: each task keeps the entries that every other entry has a near one among."""

import heapq
from collections import defaultdict
from collections.abc import Sequence
from itertools import zip_longest

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from inducekv.config import InduceKVConfig
from inducekv.progress import SILENT, Progress
from inducekv.selection.problem import Selection, SelectionProblem, chosen_only
from inducekv.selection.shares import in_shares
from inducekv.selection.turns import take_turns

DECIMALS = 9
"""Of gains that are compared: those that differ by less are the same, on every machine."""


def facility_location(
    problem: SelectionProblem,
    config: InduceKVConfig,
    generator: torch.Generator,
    progress: Progress = SILENT,
) -> Selection:
    """Greedy facility location over retrieval keys (Nemhauser et al. 1978), tasks taking turns; asks no question.

    CHOICE: within a task every answer comes once before any comes a second time. What a memory has no entry of it
    cannot say, and where many tasks share it an answer has one entry or none. Where all answers differ, as in free
    text, this changes nothing.
    """
    if problem.everything_fits:
        return chosen_only(problem, range(len(problem)))
    queues: dict[str, list[int]] = {}
    for task in dict.fromkeys(problem.tasks):
        members = [index for index, name in enumerate(problem.tasks) if name == task]
        order = [members[place] for place in in_shares(problem.keys[members], facility_order)]
        queues[task] = every_answer_first(order, problem.answers)
    return chosen_only(problem, take_turns(queues, problem.costs.tolist(), problem.total))


def facility_order(keys: Float[Tensor, "entries key_dim"]) -> list[int]:
    """Every entry's index, each adding most to the sum over all entries of the cosine to the nearest one before it.

    What an entry adds only falls as others are taken, so that most need not be looked at again (lazy evaluation;
    Minoux 1978). Needs no matrix of all pairs. Of entries that add the same, the first is taken: two that are each
    other's nearest always do.
    """
    unit = normalize(keys.double(), dim=1)
    nearest = torch.full((len(unit),), -1.0, dtype=unit.dtype)
    bounds = [
        (-gain, index) for index, gain in enumerate((unit @ unit.sum(0) + len(unit)).round(decimals=DECIMALS).tolist())
    ]
    heapq.heapify(bounds)
    order = []
    while bounds:
        _, index = bounds[0]
        similarity = unit @ unit[index]
        gain = (similarity - nearest).clamp_min(0).sum().round(decimals=DECIMALS)
        heapq.heapreplace(bounds, (-float(gain), index))
        if bounds[0][1] == index:
            heapq.heappop(bounds)
            order.append(index)
            nearest = torch.maximum(nearest, similarity)
    return order


def every_answer_first(order: Sequence[int], answers: Sequence[str]) -> list[int]:
    """The order in rounds: first one entry of every answer, then a second of every answer that has one, and so on."""
    of_answer: dict[str, list[int]] = defaultdict(list)
    place = {index: rank for rank, index in enumerate(order)}
    for index in order:
        of_answer[answers[index]].append(index)
    rounds = zip_longest(*of_answer.values())
    return [i for each in rounds for i in sorted((i for i in each if i is not None), key=place.__getitem__)]
