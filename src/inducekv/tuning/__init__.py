"""Finding the payload for a budget: a few ways of storing entries are measured on examples held out of the data."""

from inducekv.tuning.auto import concrete
from inducekv.tuning.frontier import frontier_of
from inducekv.tuning.measure import Bench, Measured
from inducekv.tuning.space import Point
from inducekv.tuning.split import TooFewExamples
from inducekv.tuning.tune import TuneReport, tune

__all__ = ["Bench", "Measured", "Point", "TooFewExamples", "TuneReport", "concrete", "frontier_of", "tune"]
