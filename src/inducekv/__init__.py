"""Teach a frozen vision-language model new tasks by writing a fixed number of bytes, and take any of it back."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inducekv.backbone import Backbone as Backbone
    from inducekv.config import InduceKVConfig as InduceKVConfig
    from inducekv.examples import Example as Example
    from inducekv.learner import LearnReport as LearnReport
    from inducekv.memory import KVMemory as KVMemory
    from inducekv.model import Answer as Answer
    from inducekv.model import InducedModel as InducedModel
    from inducekv.model import Source as Source
    from inducekv.readers import read_examples as read_examples

__version__ = "0.1.0"

_HOME = {
    "Answer": "model",
    "Backbone": "backbone",
    "Example": "examples",
    "InduceKVConfig": "config",
    "InducedModel": "model",
    "KVMemory": "memory",
    "LearnReport": "learner",
    "Source": "model",
    "read_examples": "readers",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use: `inducekv --help` need not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'inducekv' has no attribute {name!r}")
    return getattr(import_module(f"inducekv.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
