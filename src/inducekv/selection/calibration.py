"""The inner level: fitting the calibration phi to the likelihood of answers, with the weights fixed."""

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.progress import SILENT, Progress
from inducekv.selection.objective import Objective


class PhiFitter:
    """A few gradient steps on phi at a time, with a state that lasts from one outer step to the next.

    Specs/inducekv.md, section 3, inner level. CHOICE: Adam's step, because the gradients of tau and of the lambdas
    differ by orders of magnitude.

    Args:
        objective: gives the calibration loss G.
        phi: `[parameters]` to start from.
        lr: step size.
    """

    def __init__(self, objective: Objective, phi: Float[Tensor, " parameters"], *, lr: float) -> None:
        self._objective = objective
        self._phi = phi.detach().clone().requires_grad_()
        self._optimiser = torch.optim.Adam([self._phi], lr=lr)

    @property
    def phi(self) -> Float[Tensor, " parameters"]:
        """The present phi, detached."""
        return self._phi.detach().clone()

    def fit(
        self,
        weights: Float[Tensor, " entries"],
        steps: int,
        generator: torch.Generator,
        progress: Progress = SILENT,
    ) -> Float[Tensor, " parameters"]:
        """Takes `steps` steps and returns phi; does nothing without calibration questions."""
        scorer = self._objective.scorer
        if scorer.size("calibration") + scorer.size("calibration_anchors") == 0:
            return self.phi
        for _ in range(steps):
            batch = self._objective.inner_batch(generator)
            loss = self._objective.inner(weights.detach(), self._phi, batch)
            if not loss.requires_grad:
                break
            (self._phi.grad,) = torch.autograd.grad(loss, (self._phi,))
            self._optimiser.step()
            progress.advance()
        return self.phi


def fit_to_chosen(
    objective: Objective,
    weights: Float[Tensor, " entries"],
    phi: Float[Tensor, " parameters"],
    *,
    steps: int,
    lr: float,
    generator: torch.Generator,
    progress: Progress = SILENT,
) -> Float[Tensor, " parameters"]:
    """Fits phi to the entries that were chosen; returns the old phi if the calibration loss did not fall."""
    if not steps:
        return phi.detach().clone()
    fitter = PhiFitter(objective, phi, lr=lr)
    with torch.no_grad():
        before = objective.inner(weights, phi)
    progress.start("calibrating", steps)
    fitted = fitter.fit(weights, steps, generator, progress)
    progress.stop()
    with torch.no_grad():
        after = objective.inner(weights, fitted)
    return fitted if bool(after < before) else phi.detach().clone()
