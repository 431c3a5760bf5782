"""Finding the payload for a budget: ways of storing entries are measured on examples held out of the data."""

from inducekv.tuning.auto import tuned_on_first
from inducekv.tuning.frontier import frontier_of
from inducekv.tuning.measure import Measured
from inducekv.tuning.sources import Source, source_of
from inducekv.tuning.space import Point
from inducekv.tuning.split import TooFewExamples
from inducekv.tuning.tuner import TuneReport, fields_of, tune

__all__ = [
    "Measured",
    "Point",
    "Source",
    "TooFewExamples",
    "TuneReport",
    "fields_of",
    "frontier_of",
    "source_of",
    "tune",
    "tuned_on_first",
]
