"""Greedy selection: one entry at a time, the one that lowers an estimate of J most a byte."""

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.config import InduceKVConfig
from inducekv.progress import SILENT, Progress
from inducekv.selection.objective import Split
from inducekv.selection.problem import Selection, SelectionProblem, chosen_only

NEIGHBOURS = 8
"""Nearest entries of a question whose effect on its answer is measured. CHOICE."""


def greedy(
    problem: SelectionProblem,
    config: InduceKVConfig,
    generator: torch.Generator,
    progress: Progress = SILENT,
) -> Selection:
    """Adds entries by falling gain a byte on the three terms of J, each estimated from single entries (CHOICE).

    For every outer question the gain in likelihood from each of its nearest entries, read alone, is measured once. A
    set of entries is then worth, to a question, the mean of its members' gains under the retrieval weights alpha
    (members that were not measured gain nothing); questions of the current task and of the anchors and the coverage
    term weigh as in J. Since alpha is shared, a harmful neighbour counts against a set.
    """
    worth = [
        (share / len(gains), gains, pulls)
        for share, (gains, pulls) in (
            (1.0, _gains(problem, "current")),
            (config.beta, _gains(problem, "anchors")),
        )
        if len(gains)
    ]
    pulled = [pulls.new_full(pulls.shape[:1], 1e-12) for _, _, pulls in worth]
    gained = [torch.zeros_like(total) for total in pulled]
    coverage = problem.objective.coverage
    projected, shares = coverage.projected.double(), coverage.shares(torch.ones(len(problem)))
    inverse = torch.linalg.inv(coverage.ridge())
    free = torch.ones(len(problem), dtype=torch.bool)
    costs, left = problem.costs.double(), float(problem.total)
    chosen: list[int] = []
    while True:
        free &= costs <= left
        if not free.any():
            return chosen_only(problem, chosen)
        gain = config.gamma * torch.log1p(shares * torch.einsum("nd,de,ne->n", projected, inverse, projected))
        for (share, gains, pulls), total, sum_of_gains in zip(worth, pulled, gained, strict=True):
            after = (sum_of_gains[:, None] + pulls * gains) / (total[:, None] + pulls)
            gain = gain + share * (after - (sum_of_gains / total)[:, None]).sum(0)
        index = int(torch.where(free, gain / costs, -torch.inf).argmax())
        chosen.append(index)
        free[index] = False
        left -= float(costs[index])
        for (_, gains, pulls), total, sum_of_gains in zip(worth, pulled, gained, strict=True):
            total += pulls[:, index]
            sum_of_gains += pulls[:, index] * gains[:, index]
        direction = inverse @ projected[index]
        inverse = inverse - shares[index] * torch.outer(direction, direction) / (
            1 + shares[index] * (projected[index] @ direction)
        )


def _gains(
    problem: SelectionProblem, split: Split
) -> tuple[Float[Tensor, "questions entries"], Float[Tensor, "questions entries"]]:
    """Nats gained by each question from each entry read alone, and the unnormalised alpha of that entry; float64."""
    scorer, entries = problem.objective.scorer, len(problem)
    if scorer.size(split) == 0:
        return torch.zeros(0, entries).double(), torch.zeros(0, entries).double()
    similarities = scorer.similarities(split).double()
    nearest = similarities.topk(min(NEIGHBOURS, entries), dim=1)
    reachable = torch.where(nearest.values > -torch.inf, nearest.indices, -1)
    asked = torch.cat([torch.full_like(reachable[:, :1], -1), reachable], dim=1)
    with torch.no_grad():
        losses = scorer.nll_alone(split, asked, problem.phi).double()
    gains = torch.zeros_like(similarities)
    gains.scatter_(1, nearest.indices, torch.where(reachable >= 0, losses[:, :1] - losses[:, 1:], 0.0))
    temperature = torch.nn.functional.softplus(problem.phi[0].double())
    pulls = torch.exp((similarities - similarities.amax(1, keepdim=True)) / temperature)
    return gains, torch.nan_to_num(pulls)
