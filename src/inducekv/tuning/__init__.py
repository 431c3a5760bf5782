"""Finding the payload for a budget: ways of storing entries are measured on examples held out of the data."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inducekv.tuning.auto import tuned_on_first as tuned_on_first
    from inducekv.tuning.frontier import frontier_of as frontier_of
    from inducekv.tuning.measure import Measured as Measured
    from inducekv.tuning.sources import Source as Source
    from inducekv.tuning.sources import source_of as source_of
    from inducekv.tuning.space import Point as Point
    from inducekv.tuning.split import TooFewExamples as TooFewExamples
    from inducekv.tuning.tuner import TuneReport as TuneReport
    from inducekv.tuning.tuner import fields_of as fields_of
    from inducekv.tuning.tuner import tune as tune

_HOME = {
    "Measured": "measure",
    "Point": "space",
    "Source": "sources",
    "TooFewExamples": "split",
    "TuneReport": "tuner",
    "fields_of": "tuner",
    "frontier_of": "frontier",
    "source_of": "sources",
    "tune": "tuner",
    "tuned_on_first": "auto",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Imports a name on first use: to show a memory, only the names of ways of storing are needed."""
    if name not in _HOME:
        raise AttributeError(f"module 'inducekv.tuning' has no attribute {name!r}")
    return getattr(import_module(f"inducekv.tuning.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
