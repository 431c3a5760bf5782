"""Bilevel selection: calibrate inside, choose outside, so that entries are judged by the answers they give."""

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.config import InduceKVConfig
from inducekv.progress import SILENT, Progress
from inducekv.selection.calibration import PhiFitter
from inducekv.selection.facility_location import facility_location
from inducekv.selection.hypergradient import HYPERGRADIENTS
from inducekv.selection.objective import Batch, Measured, Terms
from inducekv.selection.problem import Selection, SelectionProblem
from inducekv.selection.rounding import indicator, round_weights
from inducekv.selection.simplex import project

GHOST = 0.05
"""Weight of entries that are not chosen while the gradient is taken, so that retrieval can reach them. CHOICE."""
MOMENTUM = 0.5
"""Part of the previous outer gradient that is kept: a batch of questions meets few entries. CHOICE."""
FORGIVENESS = 0.9
"""How slowly exchanges that did not pay are tried again. CHOICE."""
WARM_UP = 4
"""Inner steps before the first outer one, so that later steps are judged by their entries and not by phi. CHOICE.

None with `inner_steps=0`: the two levels are then not coupled, and phi is fitted once the entries are chosen."""
LONGER = 8
"""How many exchanges more a step may try when entries of different size leave the rounding as it was. CHOICE."""
CERTAINTY = 0.5
"""Standard errors by which J must have fallen, over the same questions before and after. CHOICE."""
PATIENCE = 8
"""It ends after so many steps in a row that were taken back. CHOICE."""

Gradients = dict[tuple[Batch, ...], tuple[Tensor, Terms]]
"""dJ/dw and J's terms by the questions they were taken on."""


def bilevel(
    problem: SelectionProblem,
    config: InduceKVConfig,
    generator: torch.Generator,
    progress: Progress = SILENT,
) -> Selection:
    """Minimises J(w, phi*(w)) over the capped simplex by projected gradient (InduceKV; specs/inducekv.md, section 3).

    CHOICES, beyond the published description:

    - Gradients are taken at rounded weights (straight through), the rest held at a small weight. Since alpha is
      normalised, J(w) does not change when all weights shrink together: weights spread over all candidates answer as
      well as a memory that holds them all, so the relaxed optimum is spread out and its rounding arbitrary. What counts
      is J of a memory that fits.
    - The gradient of a mean log-likelihood is tiny and its scale says nothing about w. So the step is as long as it
      takes to exchange a given number of entries (at first the share `outer_lr` of those chosen); it grows when J of
      the new rounded weights, on all outer questions, is lower by more than chance would have it (J is a mean over
      some hundred questions), and else shrinks, and the step is taken back.
    - phi is fitted again when the entries have changed, not after a step that was taken back (until then only the
      questions that read something else need to be scored anew), and kept if J is not higher for it.
    - It starts from what facility location chooses, which costs no forward pass; few steps then suffice. (Starting from
      herding forgot more of 24 tasks. Starting from the greedy choice too, and going on from the better, took a quarter
      more time and gained nothing.)
    """
    if problem.everything_fits:
        return Selection(torch.ones(len(problem)), list(range(len(problem))), problem.phi)
    objective, costs, total = problem.objective, problem.costs, problem.total
    hypergradient = HYPERGRADIENTS[config.hypergradient]
    fitter = PhiFitter(objective, problem.phi, lr=config.inner_lr)
    chosen = facility_location(problem, config, generator, progress).chosen
    weights = indicator(chosen, len(problem))

    def refit(held: list[int], phi: Tensor, value: Measured, steps: int) -> tuple[Tensor, Measured]:
        fitted = fitter.fit(indicator(held, len(problem)), steps, generator)
        fitted_value = _measured(problem, held, fitted) if steps else value
        return (fitted, fitted_value) if fitted_value.total <= value.total else (phi, value)

    start = _measured(problem, chosen, problem.phi)
    phi, value = refit(chosen, problem.phi, start, WARM_UP if config.inner_steps else 0)
    velocity, aversion = torch.zeros_like(weights), torch.zeros_like(weights)
    exchanges = max(1.0, config.outer_lr * len(chosen))
    history, refused = [], 0
    known = Gradients()  # where the weights are now
    progress.start("choosing entries", config.outer_steps)
    for step in range(config.outer_steps):
        held = indicator(chosen, len(problem))
        batches = objective.outer_batch(generator), objective.inner_batch(generator)
        drawn = batches if config.hypergradient == "implicit" else batches[:1]  # which alone looks at the inner one
        if drawn not in known:
            known[drawn] = hypergradient(objective, held + GHOST * (1 - held), phi, *batches)
        gradient, terms = known[drawn]
        velocity = MOMENTUM * velocity + _unit(gradient, costs)
        direction = _unit(velocity, costs) + aversion * (1 - 2 * held)
        relaxed = _step(held, direction, round(exchanges), problem)
        trial = round_weights(relaxed, costs, total)
        changed = held != indicator(trial, len(problem))
        trial_value = _measured(problem, trial, phi) if bool(changed.any()) else value
        gain, error = trial_value.gain_over(value)
        if gain > CERTAINTY * error:
            weights, chosen = relaxed, trial
            known.clear()
            phi, value = refit(chosen, phi, trial_value, config.inner_steps)
            exchanges, refused = min(1.5 * exchanges, max(1.0, len(chosen) / 2)), 0
        else:
            refused += 1
            aversion = aversion + changed
            exchanges = max(1.0, exchanges / 2)
        aversion = FORGIVENESS * aversion
        history.append(
            {
                "step": step,
                **terms.as_numbers(),
                "best": value.total,
                "exchanged": int(changed.sum()),
                "kept": chosen == trial,
            }
        )
        progress.advance()
        if refused == PATIENCE:
            break
    progress.stop()
    return Selection(weights, chosen, phi, history)


def _measured(problem: SelectionProblem, chosen: list[int], phi: Float[Tensor, " parameters"]) -> Measured:
    """J of a memory with exactly these entries, on all outer questions."""
    return problem.objective.measured(indicator(chosen, len(problem)), phi)


def _step(
    held: Float[Tensor, " entries"],
    direction: Float[Tensor, " entries"],
    exchanges: int,
    problem: SelectionProblem,
) -> Float[Tensor, " entries"]:
    """The projected step from rounded weights against `direction`, just long enough to exchange so many entries."""
    leaving = direction[held > 0].sort(descending=True).values
    entering = direction[held == 0].sort().values
    before = round_weights(held, problem.costs, problem.total)
    for count in range(exchanges, min(len(leaving), len(entering), exchanges + LONGER) + 1):
        gap = float(leaving[count - 1] - entering[count - 1])
        if gap <= 0:
            break
        relaxed = project(held - 1.001 / gap * direction, problem.costs, problem.total)
        if round_weights(relaxed, problem.costs, problem.total) != before:
            return relaxed
    return held


def _unit(direction: Float[Tensor, " entries"], costs: Tensor) -> Float[Tensor, " entries"]:
    """The part of a direction along the budget's hyperplane, scaled so that its largest component is 1."""
    normal = costs.to(direction.dtype) / costs.double().norm().to(direction.dtype)
    tangent = torch.nan_to_num(direction, posinf=0.0, neginf=0.0)
    tangent = tangent - (tangent @ normal) * normal
    return tangent / tangent.abs().max().clamp_min(torch.finfo(tangent.dtype).tiny)
