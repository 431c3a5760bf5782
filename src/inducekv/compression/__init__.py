"""Making a payload smaller, one method a file: fewer tokens (`Compression`) and fewer bits (`storage`)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from inducekv.error_text import shown

if TYPE_CHECKING:
    from inducekv.compression.attention_sum import AttentionSum as AttentionSum
    from inducekv.compression.base import Compression as Compression
    from inducekv.compression.keep_answer import KeepAnswer as KeepAnswer
    from inducekv.compression.keep_tail import KeepTail as KeepTail
    from inducekv.compression.kvpress_scorer import KVPressScorer as KVPressScorer
    from inducekv.compression.layer import CompressedLayer as CompressedLayer
    from inducekv.compression.layer import cache_bytes as cache_bytes
    from inducekv.compression.live import LiveCompression as LiveCompression
    from inducekv.compression.mean_pool import MeanPool as MeanPool
    from inducekv.compression.none import NoCompression as NoCompression
    from inducekv.compression.prefix_kv import PrefixKV as PrefixKV
    from inducekv.compression.prefix_kv import drop_ratios_of as drop_ratios_of
    from inducekv.compression.prefix_kv import mean_profile as mean_profile
    from inducekv.compression.retentive_kv import RetentiveKV as RetentiveKV
    from inducekv.compression.rotate_kv import RotateKV as RotateKV
    from inducekv.compression.select import Selection as Selection
    from inducekv.compression.shift_kv import ShiftKV as ShiftKV
    from inducekv.compression.spherical_kv import SphericalKV as SphericalKV
    from inducekv.compression.storage import STORAGE_DTYPES as STORAGE_DTYPES
    from inducekv.compression.storage import Stored as Stored
    from inducekv.compression.storage import dequantise as dequantise
    from inducekv.compression.storage import quantise as quantise
    from inducekv.compression.window_kv import WindowKV as WindowKV
    from inducekv.config import InduceKVConfig

_HOME = {
    "STORAGE_DTYPES": "storage",
    "AttentionSum": "attention_sum",
    "CompressedLayer": "layer",
    "Compression": "base",
    "KVPressScorer": "kvpress_scorer",
    "KeepAnswer": "keep_answer",
    "KeepTail": "keep_tail",
    "LiveCompression": "live",
    "MeanPool": "mean_pool",
    "NoCompression": "none",
    "PrefixKV": "prefix_kv",
    "RetentiveKV": "retentive_kv",
    "RotateKV": "rotate_kv",
    "Selection": "select",
    "ShiftKV": "shift_kv",
    "SphericalKV": "spherical_kv",
    "Stored": "storage",
    "WindowKV": "window_kv",
    "cache_bytes": "layer",
    "dequantise": "storage",
    "drop_ratios_of": "prefix_kv",
    "mean_profile": "prefix_kv",
    "quantise": "storage",
}


def __getattr__(name: str) -> Any:
    """Imports a method on first use: to read a memory file, number formats are enough, and transformers is not."""
    if name not in _HOME:
        raise AttributeError(f"module 'inducekv.compression' has no attribute {name!r}")
    return getattr(import_module(f"inducekv.compression.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


COMPRESSIONS: dict[str, Callable[[InduceKVConfig], Compression]] = {
    "none": lambda config: __getattr__("NoCompression")(),
    "mean_pool": lambda config: __getattr__("MeanPool")(tokens=config.payload_tokens),
    "keep_answer": lambda config: __getattr__("KeepAnswer")(context_tokens=config.payload_tokens),
    "keep_tail": lambda config: __getattr__("KeepTail")(context_tokens=config.payload_tokens),
    "shift_kv": lambda config: __getattr__("ShiftKV")(budget=config.payload_tokens),
}
"""How each named method is made from a configuration."""


def compression_named(config: InduceKVConfig) -> Compression:
    """The compression that `config.payload` names, or is.

    Raises:
        ValueError: no method has that name, or `config.payload_tokens` does not suit it.
    """
    from inducekv.compression.base import Compression

    if isinstance(config.payload, Compression):
        return config.payload
    if config.payload == "auto":
        raise ValueError(
            "payload 'auto' is decided when an InducedModel learns its first task; name a method here, or ask "
            "inducekv.tuning.tune for one"
        )
    if config.payload not in COMPRESSIONS:
        raise ValueError(
            f"payload must be one of {', '.join(COMPRESSIONS)} or a Compression; got {shown(config.payload)}"
        )
    return COMPRESSIONS[config.payload](config)


__all__ = [*_HOME, "COMPRESSIONS", "compression_named"]
