"""Random selection: what any selector must beat."""

import torch

from inducekv.config import InduceKVConfig
from inducekv.progress import SILENT, Progress
from inducekv.selection.problem import Selection, SelectionProblem, chosen_only
from inducekv.selection.rounding import round_weights


def random(
    problem: SelectionProblem,
    config: InduceKVConfig,
    generator: torch.Generator,
    progress: Progress = SILENT,
) -> Selection:
    """A uniformly random order of new candidates and entries in memory alike, taken while they fit."""
    order = torch.rand(len(problem), generator=generator) + 1e-6
    return chosen_only(problem, round_weights(order, problem.costs, problem.total))
