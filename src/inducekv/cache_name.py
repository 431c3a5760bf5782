"""What this release of transformers calls the cache of keys and values: `past_key_values`, since 5.24 `cache`."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

CACHE_NAMES = ("cache", "past_key_values")
"""Names that a cache may be given by: later releases take the old one too, and hooks see what was given."""
CACHE = next(name for name in CACHE_NAMES if name in {field.name for field in fields(BaseModelOutputWithPast)})
"""The name that models take and give."""


def cache_in(arguments: Mapping[str, Any]) -> Cache | None:
    """The cache among a module's keyword arguments."""
    return next((arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None), None)


def cache_of(output: Any) -> Cache | None:
    """The cache in a model's output."""
    return getattr(output, CACHE, None)
