"""Which entries are worth their bytes: the objective, its relaxation, and six selectors behind one function."""

from inducekv.selection.bilevel import bilevel
from inducekv.selection.calibration import PhiFitter, fit_to_chosen
from inducekv.selection.coverage import Coverage, orthonormal_projection
from inducekv.selection.facility_location import facility_location
from inducekv.selection.greedy import greedy
from inducekv.selection.herding import herding
from inducekv.selection.objective import Batch, Objective, Scorer, Split, Terms
from inducekv.selection.problem import Selection, SelectionProblem, Selector
from inducekv.selection.random import random
from inducekv.selection.reservoir import priorities, reservoir
from inducekv.selection.rounding import indicator, round_weights
from inducekv.selection.simplex import project

SELECTORS: dict[str, Selector] = {
    "bilevel": bilevel,
    "greedy": greedy,
    "facility_location": facility_location,
    "herding": herding,
    "reservoir": reservoir,
    "random": random,
}
"""Every selector by its name in the configuration."""

__all__ = [
    "SELECTORS",
    "Batch",
    "Coverage",
    "Objective",
    "PhiFitter",
    "Scorer",
    "Selection",
    "SelectionProblem",
    "Selector",
    "Split",
    "Terms",
    "fit_to_chosen",
    "indicator",
    "orthonormal_projection",
    "priorities",
    "project",
    "round_weights",
]
