"""Bilevel selection: calibrate inside, choose outside, so that entries are judged by the answers they give."""

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.config import InduceKVConfig
from inducekv.progress import SILENT, Progress
from inducekv.selection.calibration import PhiFitter
from inducekv.selection.greedy import greedy
from inducekv.selection.hypergradient import HYPERGRADIENTS
from inducekv.selection.problem import Selection, SelectionProblem
from inducekv.selection.rounding import indicator, round_weights
from inducekv.selection.simplex import project

START = 0.5
"""Share of the starting weights that the greedy choice gets; the rest is spread evenly over all candidates. CHOICE."""
EXPLORATION = 0.3
"""Share of the weights spread evenly over all candidates while scoring, falling to 0 over the outer steps. CHOICE."""
MOMENTUM = 0.8
"""Part of the previous outer step that is kept: batches of questions see few entries each. CHOICE."""
ROUNDINGS = 4
"""How many times along the way the rounded weights are scored; the best rounding is returned. CHOICE."""


def bilevel(
    problem: SelectionProblem,
    config: InduceKVConfig,
    generator: torch.Generator,
    progress: Progress = SILENT,
) -> Selection:
    """Minimises J(w, phi*(w)) over the capped simplex by projected gradient (InduceKV; specs/inducekv.md, section 3).

    CHOICES, beyond the published description:

    - It starts between the greedy choice and the uniform point, so no candidate is out of reach and few steps suffice.
    - While scoring, part of the weight is spread evenly over all candidates: with top-k retrieval an entry that is
      never retrieved has no gradient.
    - The gradient of a mean log-likelihood is tiny and its scale says nothing about w, so a step is scaled by its
      largest component: `outer_lr` is how far the weight that matters most moves.
    - The relaxed optimum need not round well, so rounded weights are scored with J along the way, the start included,
      and the best set is returned: by the measure it optimises, the result is never worse than its start.
    """
    if problem.everything_fits:
        weights = torch.ones(len(problem))
        return Selection(weights, list(range(len(problem))), problem.phi)
    objective, costs, total = problem.objective, problem.costs, problem.total
    hypergradient = HYPERGRADIENTS[config.hypergradient]
    start = greedy(problem, config, generator).weights
    uniform = project(torch.zeros(len(problem)), costs, total)
    weights = project(START * start + (1 - START) * uniform, costs, total)
    fitter = PhiFitter(objective, problem.phi, lr=config.inner_lr)
    best = _Best(problem)
    best.consider(start, fitter.phi)
    velocity = torch.zeros_like(weights)
    history = []
    progress.start("choosing entries", config.outer_steps)
    for step in range(config.outer_steps):
        left = 1 - step / config.outer_steps
        seen = (1 - EXPLORATION * left) * weights + EXPLORATION * left * uniform
        phi = fitter.fit(seen, config.inner_steps, generator)
        gradient, terms = hypergradient(
            objective, seen, phi, objective.outer_batch(generator), objective.inner_batch(generator)
        )
        velocity = MOMENTUM * velocity + _unit_step(gradient, costs)
        weights = project(weights - config.outer_lr * left * _unit_step(velocity, costs), costs, total)
        if (step + 1) % max(1, config.outer_steps // ROUNDINGS) == 0 or step + 1 == config.outer_steps:
            best.consider(weights, phi)
        history.append({"step": step, **terms.as_numbers(), "best": best.value})
        progress.advance()
    progress.stop()
    return Selection(weights, best.chosen, best.phi, history)


def _unit_step(direction: Float[Tensor, " entries"], costs: Tensor) -> Float[Tensor, " entries"]:
    """The part of a direction along the budget's hyperplane, scaled so that its largest component is 1."""
    normal = costs.to(direction.dtype) / costs.double().norm().to(direction.dtype)
    tangent = torch.nan_to_num(direction, posinf=0.0, neginf=0.0)
    tangent = tangent - (tangent @ normal) * normal
    return tangent / tangent.abs().max().clamp_min(torch.finfo(tangent.dtype).tiny)


class _Best:
    """The rounded weights with the lowest J so far, each scored on all outer questions with the phi of its time."""

    def __init__(self, problem: SelectionProblem) -> None:
        self._problem = problem
        self.value = float("inf")
        self.chosen: list[int] = []
        self.phi = problem.phi
        self._seen: set[tuple[int, ...]] = set()

    def consider(self, weights: Float[Tensor, " entries"], phi: Float[Tensor, " parameters"]) -> None:
        chosen = round_weights(weights, self._problem.costs, self._problem.total)
        if tuple(chosen) in self._seen:
            return
        self._seen.add(tuple(chosen))
        with torch.no_grad():
            value = float(self._problem.objective.outer(indicator(chosen, len(weights)), phi).total)
        if value < self.value:
            self.value, self.chosen, self.phi = value, chosen, phi
