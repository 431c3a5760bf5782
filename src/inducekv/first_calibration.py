"""The mass and the temperature that a new memory starts with: a short search on the first task's own questions."""

from dataclasses import replace

import torch

from inducekv.progress import SILENT, Progress
from inducekv.retrieval import Calibration
from inducekv.selection.likelihood import LikelihoodScorer, to_phi

QUESTIONS = 24
"""Questions that are asked at most. CHOICE: the curve over the mass is smooth, and each costs a pass a candidate."""
MASSES = (0.0, 2.0, 4.0, 6.0)
"""Masses tried first; then the best one's neighbours at a distance of 1. CHOICE."""
TEMPERATURES = (0.5, 2.0)
"""Factors on the temperature that are tried at the best mass. CHOICE."""


@torch.no_grad()
def first_calibration(scorer: LikelihoodScorer, start: Calibration, progress: Progress = SILENT) -> Calibration:
    """The calibration under which the first task's questions are answered best, each without its own entry.

    How much mass memory needs is a property of the model: the answers of a model that was trained to read entries are
    likeliest at 0, those of a published one at 2 to 5. CHOICE: a search over a few values, since the likelihood is flat
    where memory is not read at all, and gradients find no way out.

    Args:
        scorer: with questions in the split `"calibration"`; without any, `start` is returned.
        start: gives the scales of the values and the first temperature.
    """
    if not scorer.size("calibration"):
        return start
    weights = torch.ones(scorer.entries)
    progress.start("calibrating", len(MASSES) + 2 + len(TEMPERATURES))

    def loss(calibration: Calibration) -> float:
        progress.advance()
        return float(scorer.nll("calibration", weights, to_phi(calibration)).mean())

    def with_mass(mass: float) -> Calibration:
        return replace(start, mass=torch.tensor(mass))

    tried = {mass: loss(with_mass(mass)) for mass in MASSES}
    coarse = min(tried, key=lambda mass: tried[mass])
    tried |= {mass: loss(with_mass(mass)) for mass in (coarse - 1, coarse + 1)}
    best = min(tried, key=lambda mass: tried[mass])
    found, least = with_mass(best), tried[best]
    for factor in TEMPERATURES:
        other = Calibration.initial(len(start.phi_lambda), factor * float(start.tau))
        other = replace(found, phi_tau=other.phi_tau)
        if (value := loss(other)) < least:
            found, least = other, value
    progress.stop()
    return found
