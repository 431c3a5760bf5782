"""Facility location: each task keeps the entries that every other entry has a near one among."""

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
from inducekv.selection.turns import take_turns


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
    queues: dict[str, list[int]] = {}
    for task in dict.fromkeys(problem.tasks):
        members = [index for index, name in enumerate(problem.tasks) if name == task]
        order = [members[place] for place in facility_order(problem.keys[members]).tolist()]
        queues[task] = every_answer_first(order, problem.answers)
    return chosen_only(problem, take_turns(queues, problem.costs.tolist(), problem.total))


def facility_order(keys: Float[Tensor, "entries key_dim"]) -> Tensor:
    """Indices `[entries]`, each adding most to the sum over all entries of the cosine to the nearest one before it."""
    unit = normalize(keys.double(), dim=1)
    similarity = unit @ unit.T
    nearest = torch.full((len(unit),), -1.0, dtype=similarity.dtype)
    free = torch.ones(len(unit), dtype=torch.bool)
    order = []
    for _ in range(len(unit)):
        gain = (similarity - nearest).clamp_min(0).sum(1)
        index = int(torch.where(free, gain, -1.0).argmax())
        order.append(index)
        free[index] = False
        nearest = torch.maximum(nearest, similarity[index])
    return torch.tensor(order, dtype=torch.long)


def every_answer_first(order: Sequence[int], answers: Sequence[str]) -> list[int]:
    """The order in rounds: first one entry of every answer, then a second of every answer that has one, and so on."""
    of_answer: dict[str, list[int]] = defaultdict(list)
    place = {index: rank for rank, index in enumerate(order)}
    for index in order:
        of_answer[answers[index]].append(index)
    rounds = zip_longest(*of_answer.values())
    return [i for each in rounds for i in sorted((i for i in each if i is not None), key=place.__getitem__)]
