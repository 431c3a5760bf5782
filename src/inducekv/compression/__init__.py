"""Making a payload smaller, one method a file: fewer tokens (`Compression`) and fewer bits (`storage`)."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from inducekv.compression.attention_sum import AttentionSum
from inducekv.compression.base import Compression
from inducekv.compression.keep_answer import KeepAnswer
from inducekv.compression.keep_tail import KeepTail
from inducekv.compression.kvpress_scorer import KVPressScorer
from inducekv.compression.layer import CompressedLayer, cache_bytes
from inducekv.compression.live import LiveCompression
from inducekv.compression.mean_pool import MeanPool
from inducekv.compression.none import NoCompression
from inducekv.compression.prefix_kv import PrefixKV, drop_ratios_of, mean_profile
from inducekv.compression.retentive_kv import RetentiveKV
from inducekv.compression.rotate_kv import RotateKV
from inducekv.compression.select import Selection
from inducekv.compression.shift_kv import ShiftKV
from inducekv.compression.spherical_kv import SphericalKV
from inducekv.compression.storage import STORAGE_DTYPES, Stored, dequantise, quantise
from inducekv.compression.window_kv import WindowKV

if TYPE_CHECKING:
    from inducekv.config import InduceKVConfig

COMPRESSIONS: dict[str, "Callable[[InduceKVConfig], Compression]"] = {
    "none": lambda config: NoCompression(),
    "mean_pool": lambda config: MeanPool(tokens=config.payload_tokens),
    "keep_answer": lambda config: KeepAnswer(context_tokens=config.payload_tokens),
    "keep_tail": lambda config: KeepTail(context_tokens=config.payload_tokens),
    "shift_kv": lambda config: ShiftKV(budget=config.payload_tokens),
}
"""How each named method is made from a configuration."""


def compression_named(config: "InduceKVConfig") -> Compression:
    """The compression that `config.payload` names, or is.

    Raises:
        ValueError: no method has that name, or `config.payload_tokens` does not suit it.
    """
    if isinstance(config.payload, Compression):
        return config.payload
    if config.payload == "auto":
        raise ValueError(
            "payload 'auto' is decided when an InducedModel learns its first task; name a method here, or ask "
            "inducekv.tuning.tune for one"
        )
    if config.payload not in COMPRESSIONS:
        raise ValueError(f"payload must be one of {', '.join(COMPRESSIONS)} or a Compression; got {config.payload!r}")
    return COMPRESSIONS[config.payload](config)


__all__ = [
    "COMPRESSIONS",
    "STORAGE_DTYPES",
    "AttentionSum",
    "CompressedLayer",
    "Compression",
    "KVPressScorer",
    "KeepAnswer",
    "KeepTail",
    "LiveCompression",
    "MeanPool",
    "NoCompression",
    "PrefixKV",
    "RetentiveKV",
    "RotateKV",
    "Selection",
    "ShiftKV",
    "SphericalKV",
    "Stored",
    "WindowKV",
    "cache_bytes",
    "compression_named",
    "dequantise",
    "drop_ratios_of",
    "mean_profile",
    "quantise",
]
